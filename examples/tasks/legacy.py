#!/usr/bin/env python3
"""An agent before a system that only knows slow HTTP calls: whoever delegates need not wait.

A task is `{"input": …}`, which is posted to the one URL that this program was started with; the
answer is the task's result. The task stays this agent's for as long as the call lasts.

An agent that dies during the call makes it again: the `Idempotency-Key`, which is the task's id,
lets the other side notice. If it does not look at that, only delegate what may happen twice.
"""

import argparse
import json
import sys

from tasks import Failed, Task, agent_options, serve
from wire import Unreachable, request, run


def main() -> int:
    parser = argparse.ArgumentParser(description="Passes tasks on to a slow HTTP service.")
    # Never from the task: whoever delegates must not choose where we call.
    parser.add_argument("--url", required=True)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    options = agent_options(parser, "legacy")

    async def work(task: Task):
        await task.working(message="waiting for the legacy system")
        headers, sent = {"Idempotency-Key": task.id}, task.body.get("input")
        try:
            status, body = await request("POST", options.url, headers, sent, options.timeout)
        except Unreachable as error:
            raise Failed("legacy-unreachable", str(error)) from error
        if not 200 <= status < 300:
            raise Failed("legacy-status", f"the legacy system answered {status}", status=status)
        try:
            return json.loads(body)
        except ValueError:  # Old systems often speak something else.
            return body.decode("utf-8", "replace")

    return run(serve(options, work))


if __name__ == "__main__":
    sys.exit(main())
