#!/usr/bin/env python3
"""A notifier: tells an endpoint, a chat for example, of every task that has ended.

Its own durable on TASKS keeps its place, from its first start on: what happens while it is down
it tells afterwards. A move is acknowledged when the notice is stored, and the notice's id is made
from the move, so none is missed and none is told twice.
"""

import argparse
import contextlib
import json
import sys

import nats.errors
from nats.js.api import ConsumerConfig, DeliverPolicy

from tasks import ENDS, agent_options
from wire import connect, emit, leave, log, message_id, next_message, run, stop_on_signals


async def watch(options: argparse.Namespace) -> int:
    client = await connect(options, options.agent)
    try:
        jetstream = client.jetstream()
        # Not the agent's name alone: [agents.<name>] gives that durable to tasks for the agent.
        durable = f"{options.agent}-states"
        from_now = ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
        subject = "tasks.*.*.state"
        subscription = await jetstream.pull_subscribe(subject, durable, "TASKS", from_now)
        stop = stop_on_signals()
        emit({"ready": True})
        while not stop.is_set():
            message = await next_message(client, subscription, stop)
            if message:
                await handle(jetstream, message, options)
        return 0
    finally:
        await leave(client)


async def handle(jetstream, message, options: argparse.Namespace) -> None:
    try:
        move = json.loads(message.data)
        if move["status"] in ENDS:
            await notify(jetstream, move, options)
        await message.ack()
    except (KeyError, TypeError, ValueError):  # Whoever may publish here can publish anything.
        log(f"a message on {message.subject} is no move")
        await message.term()
    except nats.errors.Error as error:
        log(f"a message on {message.subject} comes back: {error!r}")
        with contextlib.suppress(nats.errors.Error):
            await message.nak(delay=5)


async def notify(jetstream, move: dict, options: argparse.Namespace) -> None:
    notice = {"text": f"Task {move['task_id']} of {move['agent']}: {move['status']}"}
    headers = {
        "Hookbridge-Endpoint": options.endpoint,
        "Nats-Msg-Id": message_id(options.agent, move["task_id"], move["sequence"]),
        "content-type": "application/json",
    }
    await jetstream.publish(f"outbox.{options.agent}", json.dumps(notice).encode(), headers=headers)
    emit({"task_id": move["task_id"], "notice": headers["Nats-Msg-Id"]})


def main() -> int:
    parser = argparse.ArgumentParser(description="Tells an endpoint of tasks that have ended.")
    parser.add_argument("--endpoint", default="chat", metavar="NAME", help="default: chat")
    return run(watch(agent_options(parser, "notifier")))


if __name__ == "__main__":
    sys.exit(main())
