"""The two wires, NATS and HTTP, as all the programs here use them."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import signal
import sys
import urllib.error
import urllib.request

import nats
import nats.errors

LARGEST = 512 * 1024  # Bytes of an HTTP answer; what is longer would not fit into a message.


async def connect(options, name: str) -> nats.NATS:
    return await nats.connect(
        options.nats.split(","),
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        error_cb=log_connection_error,
    )


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
        log(f"nothing can be fetched: {error!r}")
        await asyncio.sleep(1)
        return None


async def leave(client: nats.NATS) -> None:
    """Makes sure that the last ack has reached the server, and hangs up."""
    with contextlib.suppress(nats.errors.Error):
        if client.is_connected:
            await client.flush()
        await client.close()


def message_id(agent: str, *parts: object) -> str:
    """Names a message: the same for the same parts, so that saying it again says nothing new.

    Message ids are shared by all agents and at most 64 long. Hence the agent's name, and the hash.
    """
    digest = hashlib.sha256("\n".join(map(str, [agent, *parts])).encode()).hexdigest()
    return f"{agent[:31]}-{digest[:32]}"


class Unreachable(Exception):
    """There was no answer that could be read."""


async def request(method: str, url: str, headers: dict, body, timeout: float) -> tuple[int, bytes]:
    """Makes an HTTP request in a thread; returns status and body, whatever the status is."""
    sent = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    asked = urllib.request.Request(url, sent, headers, method=method)
    try:
        # The library's timeout is for each read, this one is for all of them.
        return await asyncio.wait_for(asyncio.to_thread(answer, asked, timeout), timeout)
    except (asyncio.TimeoutError, TimeoutError) as error:  # Two until Python 3.11.
        raise Unreachable(f"no answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(error) or repr(error)) from error


def answer(asked: urllib.request.Request, timeout: float) -> tuple[int, bytes]:
    try:
        response = OPENER.open(asked, timeout=timeout)
    except urllib.error.HTTPError as error:  # An answer like any other.
        response = error
    with response:
        body = response.read(LARGEST + 1)
    if len(body) > LARGEST:
        raise http.client.HTTPException(f"the answer is larger than {LARGEST} bytes")
    return response.status, body


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The library would follow with all headers, a token included."""

    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler({}))


def stop_on_signals() -> asyncio.Event:
    """The first signal lets what is in hand be finished, a second one stops at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def request_stop(number, _frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)
    return stop


def run(main) -> int:
    """Runs a program's coroutine; what NATS refuses is a line, not a trace."""
    try:
        return asyncio.run(main)
    except KeyboardInterrupt:
        return 130
    except nats.errors.Error as error:
        log(f"NATS: {error!r}")
        return 1


def nats_option(parser) -> None:
    parser.add_argument("--nats", default=os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))


async def log_connection_error(error: Exception) -> None:
    log(f"NATS: {error!r}")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(record: dict) -> None:
    print(json.dumps(record), flush=True)
