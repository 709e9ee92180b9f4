#!/usr/bin/env python3
"""An agent: takes events from its durable consumer, answers each on the outbox.

The promise is that every event is answered, and that a repeated event is answered once. It
holds because of the order of things: the answer is stored (JetStream confirms it) before the
event is acknowledged, and the answer's id is derived from the event's. An agent that dies
between the two gets the event again and gives the same id, and the stream drops the repeat.

Replace `work` with yours; the rest stays as it is.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import sys
from urllib.parse import unquote

import nats
import nats.errors
import nats.js.errors


@dataclasses.dataclass(frozen=True)
class Event:
    """A webhook that the gateway has verified."""

    id: str
    source: str
    type: str
    subject: str
    data: bytes


def work(event: Event) -> dict:
    """Summarises an event. It runs in a thread, so it may block for as long as it needs."""
    summary = f"{event.type} from {event.source}, {len(event.data)} bytes"
    with contextlib.suppress(ValueError):
        body = json.loads(event.data)
        if isinstance(body, dict) and body:
            summary += " with " + ", ".join(sorted(body))
    return {"event": event.id, "type": event.type, "summary": summary}


async def run(options: argparse.Namespace) -> int:
    client = await nats.connect(
        options.nats.split(","),
        name=options.agent,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        error_cb=log_connection_error,
    )
    try:
        return await consume(client, options)
    finally:
        await leave(client)


async def consume(client: nats.NATS, options: argparse.Namespace) -> int:
    jetstream = client.jetstream()
    ack_wait = await find_consumer(jetstream, options)
    if ack_wait is None:
        log(
            f"there is no consumer `{options.agent}` on the stream `{options.stream}`: "
            f"add [agents.{options.agent}] to Hookbridge's configuration and restart it"
        )
        return 1
    # Binding never creates a consumer: which events an agent gets is the configuration's say.
    subscription = await jetstream.pull_subscribe_bind(options.agent, options.stream)
    stop = stop_on_signals()
    emit({"ready": True})

    handled = 0
    while handled != options.events and not stop.is_set():
        message = await next_message(client, subscription, stop)
        if message and await handle(jetstream, message, ack_wait, options):
            handled += 1
    return 0


async def find_consumer(jetstream, options: argparse.Namespace) -> float | None:
    """Returns how many seconds the consumer waits for an ack, or None if it does not exist."""
    while True:
        try:
            consumer = await jetstream.consumer_info(options.stream, options.agent)
            return consumer.config.ack_wait or 30
        except nats.js.errors.NotFoundError:
            return None
        except nats.errors.ConnectionClosedError:
            raise
        except nats.errors.Error as error:  # A server that has just started needs a moment.
            log(f"JetStream does not answer yet: {error}")
            await asyncio.sleep(1)


async def next_message(client: nats.NATS, subscription, stop: asyncio.Event):
    """Returns the next message, or None when there is none yet or it is time to stop."""
    if client.is_closed:
        raise nats.errors.ConnectionClosedError
    if not client.is_connected:
        # Requests made now would pile up, and all be served at once after the reconnect.
        await asyncio.sleep(0.2)
        return None
    # One at a time: a message that waits here unseen would use up its ack_wait.
    fetch = asyncio.create_task(subscription.fetch(1, timeout=5))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({fetch, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not fetch.done():
        fetch.cancel()
        await asyncio.gather(fetch, return_exceptions=True)
        return None
    try:
        return fetch.result()[0]
    except nats.errors.TimeoutError:
        return None
    except nats.errors.Error as error:
        log(f"no event can be fetched: {error}")
        await asyncio.sleep(1)
        return None


async def handle(jetstream, message, ack_wait: float, options: argparse.Namespace) -> bool:
    """Answers one event; returns whether the answer is stored and the event acknowledged."""
    headers = message.headers or {}
    if "ce-id" not in headers:
        log(f"a message on {message.subject} has no ce-id, so it is not an event")
        with contextlib.suppress(nats.errors.Error):
            await message.term()
        return False

    event = Event(
        id=unquote(headers["ce-id"]),
        source=unquote(headers.get("ce-source", "")),
        type=unquote(headers.get("ce-type", "unknown")),
        subject=message.subject,
        data=message.data,
    )
    heartbeat = asyncio.create_task(keep_in_progress(message, ack_wait / 3))
    try:
        payload = await asyncio.to_thread(work, event)
        stored = await answer(jetstream, headers, payload, options)
        await message.ack()
    except Exception as error:  # Whatever went wrong, the event must come back.
        delay = min(2 ** min(message.metadata.num_delivered, 9), 300)
        log(f"event {event.id} comes back in {delay} s: {error!r}")
        with contextlib.suppress(nats.errors.Error):
            await message.nak(delay=delay)
        return False
    finally:
        heartbeat.cancel()
    emit({"event": event.id, "subject": event.subject, **stored})
    return True


async def answer(jetstream, headers: dict, payload: dict, options: argparse.Namespace) -> dict:
    """Publishes to the outbox and waits until the stream has stored it."""
    message_id = answer_id(options.agent, headers)
    destination = (
        {"endpoint": options.endpoint}
        if options.endpoint
        else {"callback_url": options.callback_url}
    )
    envelope = {**destination, "id": message_id, "payload": payload}
    # Passing the trace context on joins the webhook's trace with the delivery's.
    trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    ack = await jetstream.publish(
        f"outbox.{options.agent}",
        json.dumps(envelope).encode(),
        headers={"Nats-Msg-Id": message_id, **trace},
    )
    return {"answered": message_id, "duplicate": bool(ack.duplicate)}


def answer_id(agent: str, headers: dict) -> str:
    """Names the answer: the same for the same event, another for every other agent.

    Event ids are unique within their source and may hold any character, message ids are at most
    64 of [A-Za-z0-9_-] and shared by all agents. Hence the hash, with the agent's name before it.
    """
    origin = "\n".join([agent, headers.get("ce-source", ""), headers["ce-id"]])
    return f"{agent[:31]}-{hashlib.sha256(origin.encode()).hexdigest()[:32]}"


async def keep_in_progress(message, interval: float) -> None:
    """Tells the server that work goes on, so that it gives the event to nobody else."""
    while True:
        await asyncio.sleep(interval)
        with contextlib.suppress(nats.errors.Error):
            await message.in_progress()


def stop_on_signals() -> asyncio.Event:
    """The first signal lets the event in hand be finished, a second one stops at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def request_stop(number, _frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    return stop


async def leave(client: nats.NATS) -> None:
    """Makes sure that the last ack has reached the server, if there is one, and hangs up.

    The client's own drain would also wait for messages that it holds and nobody will read.
    """
    with contextlib.suppress(nats.errors.Error):
        if client.is_connected:
            await client.flush()
        await client.close()


async def log_connection_error(error: Exception) -> None:
    log(f"NATS: {error!r}")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(record: dict) -> None:
    print(json.dumps(record), flush=True)


def parse_options() -> argparse.Namespace:
    env = os.environ
    parser = argparse.ArgumentParser(description="Answers events from Hookbridge.")
    parser.add_argument("--nats", default=env.get("NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--agent", default=env.get("HOOKBRIDGE_AGENT", "planner"))
    parser.add_argument("--stream", default=env.get("HOOKBRIDGE_STREAM", "EVENTS"))
    parser.add_argument("--events", type=int, metavar="N", help="stop after N events")
    destination = parser.add_mutually_exclusive_group()
    destination.add_argument("--endpoint", metavar="NAME", help="or HOOKBRIDGE_ENDPOINT")
    destination.add_argument("--callback-url", metavar="URL", help="or HOOKBRIDGE_CALLBACK_URL")
    options = parser.parse_args()

    if not options.endpoint and not options.callback_url:
        options.endpoint = env.get("HOOKBRIDGE_ENDPOINT")
        options.callback_url = env.get("HOOKBRIDGE_CALLBACK_URL")
    if bool(options.endpoint) == bool(options.callback_url):
        parser.error("say where answers go: either --endpoint or --callback-url")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", options.agent):
        parser.error("an agent's name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    if options.events is not None and options.events < 1:
        parser.error("--events must be at least 1")
    return options


def main() -> int:
    try:
        return asyncio.run(run(parse_options()))
    except KeyboardInterrupt:
        return 130
    except nats.errors.Error as error:
        log(f"NATS: {error!r}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
