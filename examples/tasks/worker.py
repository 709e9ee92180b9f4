#!/usr/bin/env python3
"""A worker: does one task after another, reports how far it is, and ends with a result.

A task is `{"items": ["…", …]}`; its result is how many words each item has. Start as many
workers as you like: they share the durable, and each task goes to one of them.

Replace `work` with yours; `tasks.py` is the part to keep.
"""

import argparse
import asyncio
import sys

from tasks import Failed, Task, agent_options, serve
from wire import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts the words of the items of a task.")
    parser.add_argument("--pace", type=float, default=0.5, metavar="SECONDS", help="for each item")
    options = agent_options(parser, "worker")

    async def work(task: Task) -> dict:
        items = task.body.get("items")
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise Failed("bad-task", "`items` must be a list of texts")
        words = []
        for number, item in enumerate(items):
            message = f"item {number + 1} of {len(items)}"
            await task.working(progress=number / len(items), message=message)
            await asyncio.sleep(options.pace)  # Here is the place for what takes long.
            words.append(len(item.split()))
        return {"words": words}

    return run(serve(options, work))


if __name__ == "__main__":
    sys.exit(main())
