"""Sends push notifications as an agent does that is built with the Python SDK of A2A.

Arguments: the URL, and as JSON what else the client configured, such as {"token": "…"}. The SDK tells nobody whether
a notification arrived; it logs it.
"""

import asyncio
import json
import sys

import httpx
from a2a.server.context import ServerCallContext
from a2a.server.tasks import BasePushNotificationSender, InMemoryPushNotificationConfigStore
from a2a.types.a2a_pb2 import Task, TaskPushNotificationConfig, TaskStatusUpdateEvent
from google.protobuf.json_format import ParseDict

STATUS = {"state": "TASK_STATE_WORKING", "timestamp": "2026-08-01T12:00:00.500Z"}
UPDATE = {"taskId": "t-1", "contextId": "c-1", "status": STATUS, "metadata": {"progress": 0.5}}
TASK = {
    "id": "t-1",
    "contextId": "c-1",
    "status": {"state": "TASK_STATE_COMPLETED"},
    "artifacts": [{"artifactId": "a-1", "parts": [{"text": "42"}]}],
}


async def main(url: str, configured: str) -> None:
    store = InMemoryPushNotificationConfigStore()
    config = ParseDict({"url": url} | json.loads(configured), TaskPushNotificationConfig())
    await store.set_info("t-1", config, ServerCallContext())
    # No proxy of the environment: the gateway is on this machine.
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        sender = BasePushNotificationSender(client, store)
        await sender.send_notification("t-1", ParseDict(UPDATE, TaskStatusUpdateEvent()))
        await sender.send_notification("t-1", ParseDict(TASK, Task()))


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), timeout=30))
