#!/usr/bin/env python3
"""An orchestrator: delegates a list of jobs, follows them, and prints how each has ended.

A job is a line of JSON, `{"agent": "worker", "task_id": "…", …}`; all but `agent` is the task.
Without a `task_id` one is made from the job. So the same list again is the same tasks: whatever
happened in between, start it again, and it goes on waiting for what it delegated.

What it hears on NATS makes it fast. What it believes is `GET /tasks/{id}`, which it also asks
from time to time: a message that nobody kept for it may be missed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys

from tasks import ENDS
from wire import Unreachable, connect, emit, leave, log, message_id, nats_option, request, run


class Gateway:
    def __init__(self, options: argparse.Namespace) -> None:
        self.url = options.gateway.rstrip("/")
        self.headers = {"Authorization": f"Bearer {options.token}"}

    async def ask(self, method: str, path: str, body=None) -> tuple[int, dict]:
        """Asks until there is an answer that is no request to come again."""
        while True:
            try:
                status, answer = await request(method, self.url + path, self.headers, body, 15)
                if status not in (408, 429) and status < 500:
                    return status, json.loads(answer)
                log(f"{method} {path} was answered {status}")
            except (Unreachable, ValueError) as error:
                log(f"{method} {path}: {error}")
            await asyncio.sleep(1)


async def see_through(job: dict, gateway: Gateway, ended: dict, options) -> bool:
    """Delegates one job and waits for its end; returns whether there is one."""
    task = {key: value for key, value in job.items() if key != "agent"}
    task.setdefault("task_id", message_id("job", json.dumps(job, sort_keys=True)))
    if options.callback_url:
        task.setdefault("callback_url", options.callback_url)
    name = {"task_id": task["task_id"], "agent": job["agent"]}

    heard = ended[task["task_id"]] = asyncio.Event()
    status, answer = await gateway.ask("POST", f"/agents/{job['agent']}/tasks", task)
    while status < 400:
        heard.clear()
        status, answer = await gateway.ask("GET", f"/tasks/{task['task_id']}")
        if answer.get("status") in ENDS:
            said = {key: answer[key] for key in ("result", "error") if key in answer}
            emit({**name, "status": answer["status"], **said})
            return True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(heard.wait(), options.look_every)
    emit({**name, "status": "refused", "error": answer})
    return False


async def orchestrate(options: argparse.Namespace, jobs: list[dict]) -> int:
    client = await connect(options, "orchestrator")
    try:
        ended: dict[str, asyncio.Event] = {}

        async def hear(message) -> None:
            told = json.loads(message.data)
            if told["status"] in ENDS and told["task_id"] in ended:
                ended[told["task_id"]].set()

        await client.subscribe("tasks.*.*.state", cb=hear)
        gateway = Gateway(options)
        all_jobs = asyncio.gather(*(see_through(job, gateway, ended, options) for job in jobs))
        return 0 if all(await asyncio.wait_for(all_jobs, options.within)) else 1
    except asyncio.TimeoutError:
        log(f"not all tasks have ended within {options.within:g} s")
        return 1
    finally:
        await leave(client)


def main() -> int:
    parser = argparse.ArgumentParser(description="Delegates jobs, one line of JSON each.")
    nats_option(parser)
    parser.add_argument("--gateway", default="http://127.0.0.1:8080")
    parser.add_argument("--callback-url", metavar="URL", help="where the client is called back")
    parser.add_argument("--look-every", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--within", type=float, default=600, metavar="SECONDS")
    parser.add_argument("jobs", type=argparse.FileType(), help="a file, or - for standard input")
    options = parser.parse_args()
    options.token = os.environ.get("HOOKBRIDGE_TOKEN")
    if not options.token:
        parser.error("HOOKBRIDGE_TOKEN must have the client's token")
    jobs = [json.loads(line) for line in options.jobs if line.strip()]
    if not all(isinstance(job, dict) and "agent" in job for job in jobs):
        parser.error("a job is an object that names its `agent`")
    return run(orchestrate(options, jobs))


if __name__ == "__main__":
    sys.exit(main())
