"""An agent's side of a task: taken from the durable, worked on, told of, and only then let go.

The promise is that every task ends, and that its end is told once, however often workers die:

- The task is acknowledged after JetStream has confirmed its last update. Before that a worker
  that dies lets it come back, after the durable's ack wait, to whoever asks first.
- The id of each update is made from the task and the step. Whoever does the task again says the
  same under the same ids, and the stream drops what was said before.
- While it works, it signals so: otherwise the task would be given to somebody else as well.
"""

import argparse
import asyncio
import contextlib
import json
import re

import nats.errors
import nats.js.errors

from wire import connect, emit, leave, log, message_id, nats_option, next_message, stop_on_signals

ENDS = {"completed", "failed", "canceled", "rejected"}


class Failed(Exception):
    """Why a task cannot be done, for the client that delegated it."""

    def __init__(self, code: str, message: str, **more) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, **more}


class Task:
    """One task in hand."""

    def __init__(self, jetstream, agent: str, message) -> None:
        self.id: str = message.headers["Hookbridge-Task-Id"]
        self.body: dict = json.loads(message.data)
        self.jetstream, self.agent = jetstream, agent
        self.subject = message.subject
        # Passing the trace context on joins the client's trace with the callbacks'.
        names = ("traceparent", "tracestate")
        self.trace = {name: message.headers[name] for name in names if name in message.headers}
        self.called_off = asyncio.Event()
        self.steps = 0

    async def working(self, **said) -> None:
        """Tells how far it is: `progress`, `message`, whatever is useful."""
        self.steps += 1
        await self.say(self.steps, status="working", **said)

    async def say(self, step, **said) -> None:
        headers = {"Nats-Msg-Id": message_id(self.agent, self.id, step), **self.trace}
        update = json.dumps({"task_id": self.id, **said}).encode()
        await self.jetstream.publish(f"outbox.{self.agent}", update, headers=headers)

    async def has_ended(self) -> bool:
        """Whether it was called off before it came here, or ended by a worker that then died."""
        try:
            last = await self.jetstream.get_last_msg("TASKS", f"{self.subject}.state")
        except nats.js.errors.NotFoundError:
            return False
        return json.loads(last.data)["status"] in ENDS


async def serve(options: argparse.Namespace, work) -> int:
    """Does tasks with `work(task)`, which returns the result or raises `Failed`."""
    client = await connect(options, options.agent)
    try:
        jetstream = client.jetstream()
        try:  # The configuration makes the durable, and nobody else.
            consumer = await jetstream.consumer_info("TASKS", options.agent)
        except nats.js.errors.NotFoundError:
            log(f"there is no consumer `{options.agent}` on TASKS: add [agents.{options.agent}]")
            return 1
        interval = (consumer.config.ack_wait or 30) / 3
        in_hand: dict[str, Task] = {}
        await client.subscribe(f"tasks.{options.agent}.*.cancel", cb=call_off(in_hand))
        subscription = await jetstream.pull_subscribe_bind(options.agent, "TASKS")
        stop = stop_on_signals()
        emit({"ready": True})
        while not stop.is_set():
            message = await next_message(client, subscription, stop)
            if message:
                heartbeat = asyncio.create_task(keep_in_progress(message, interval))
                try:
                    await handle(jetstream, options.agent, message, in_hand, work)
                finally:
                    heartbeat.cancel()
        return 0
    finally:
        await leave(client)


async def handle(jetstream, agent: str, message, in_hand: dict, work) -> None:
    """Sees one task to its end, or gives it back."""
    try:
        task = Task(jetstream, agent, message)
    except (KeyError, TypeError, ValueError):  # Whoever may publish here can publish anything.
        log(f"a message on {message.subject} is no task")
        return await message.term()
    in_hand[task.id] = task
    try:
        outcome = "ended-before" if await task.has_ended() else await do(task, work)
        await message.ack()
        emit({"task_id": task.id, "outcome": outcome})
    except nats.errors.Error as error:  # It could not be said: the task must come back.
        delay = min(2 ** min(message.metadata.num_delivered, 9), 300)
        log(f"task {task.id} comes back in {delay} s: {error!r}")
        with contextlib.suppress(nats.errors.Error):
            await message.nak(delay=delay)
    finally:
        del in_hand[task.id]


async def do(task: Task, work) -> str:
    """Works until there is a result, a failure, or word that nobody waits for it any more."""
    emit({"task_id": task.id, "taken": True})
    working = asyncio.create_task(work(task))
    called_off = asyncio.create_task(task.called_off.wait())
    try:
        await asyncio.wait({working, called_off}, return_when=asyncio.FIRST_COMPLETED)
        if task.called_off.is_set():
            return "called-off"  # It has ended already: there is nothing left to say.
        end = {"status": "completed", "result": working.result()}
    except nats.errors.Error:
        raise
    except Failed as failure:
        end = {"status": "failed", "error": failure.error}
    except Exception as mistake:  # Ours: its details are for the log.
        log(f"task {task.id}: {mistake!r}")
        error = {"code": "internal", "message": "the agent made a mistake"}
        end = {"status": "failed", "error": error}
    finally:
        working.cancel()
        called_off.cancel()
        await asyncio.gather(working, called_off, return_exceptions=True)
    # One id for every end: of two workers that both believe to hold the task, the first is heard.
    await task.say("end", **end)
    return end["status"]


def call_off(in_hand: dict[str, Task]):
    async def called_off(message) -> None:
        task = in_hand.get(message.subject.split(".")[2])
        if task:
            task.called_off.set()

    return called_off


async def keep_in_progress(message, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        with contextlib.suppress(nats.errors.Error):
            await message.in_progress()


def agent_options(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    nats_option(parser)
    parser.add_argument("--agent", default=name, help=f"default: {name}")
    options = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", options.agent):
        parser.error("an agent's name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return options
