#!/usr/bin/env python3
"""A webhook receiver: verifies both signature forms, takes every delivery once.

It needs nothing but the standard library. `verify` is the part to copy: it sees the raw body,
compares in constant time, and decides without a clock or a network of its own.

Forms: Standard Webhooks (`webhook-signature`) also proves the id and the time. `X-Signature`
proves the body alone, so whoever has seen one such request can send it again; ask for
`--require standard-webhooks` or `both` where that matters.
"""

import argparse
import base64
import binascii
import collections
import hashlib
import hmac
import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STANDARD = "standard-webhooks"
X_SIGNATURE = "x-signature"
TOLERANCE = 5 * 60  # Seconds that a timestamp may be off, in either direction.
READ_TIMEOUT = 15  # Seconds that a request may take to arrive.
REMEMBERED = 10_000  # Delivery ids that are kept to tell a repeat.


class Refused(Exception):
    """Why a request was refused: for the log, never for the caller."""


def verify(key: bytes, require: str, header, body: bytes, now: float) -> list[str]:
    """Returns the forms that were verified; raises `Refused` if any is wrong or missing.

    `header` gives the one value of a header, or None.
    """
    verified = []
    if header("webhook-signature") is not None:
        verify_standard(key, header, body, now)
        verified.append(STANDARD)
    if header("x-signature") is not None:
        verify_x_signature(key, header("x-signature"), body)
        verified.append(X_SIGNATURE)

    required = {"any": [], "both": [STANDARD, X_SIGNATURE]}.get(require, [require])
    if not verified or not set(required) <= set(verified):
        raise Refused(f"a signature is missing, {require} is required")
    return verified


def verify_standard(key: bytes, header, body: bytes, now: float) -> None:
    delivery, timestamp = header("webhook-id"), header("webhook-timestamp")
    if not delivery or not timestamp:
        raise Refused("webhook-signature without webhook-id and webhook-timestamp")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise Refused("webhook-timestamp is not a number of seconds")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise Refused("webhook-timestamp is too far from the present")

    signed = f"{delivery}.{timestamp}.".encode("latin-1") + body
    expected = b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))
    # One signature for each of the sender's secrets: while it rotates them, any may be ours. The
    # list makes sure that all are compared, whichever matches.
    given = header("webhook-signature").encode("latin-1").split(b" ")
    if not any([hmac.compare_digest(expected, one) for one in given]):
        raise Refused("webhook-signature does not match")


def verify_x_signature(key: bytes, value: str, body: bytes) -> None:
    expected = b"sha256=" + hmac.digest(key, body, "sha256").hex().encode()
    if not hmac.compare_digest(expected, value.encode("latin-1")):
        raise Refused("X-Signature does not match")


def key_of(secret: str) -> bytes:
    """A `whsec_` secret is base64, any other is used as its bytes."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    encoded = secret.removeprefix("whsec_").rstrip("=")
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)


class Inbox:
    """Tells repeats and prints every delivery, which stands for the work on a new one.

    A receiver with a database stores the id in the same transaction as what it does with the
    delivery: then a crash between the two cannot lose or repeat anything.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: collections.OrderedDict[str, None] = collections.OrderedDict()

    def take(self, delivery: str | None, verified: list[str], body: bytes) -> bool:
        """Returns whether the delivery is a repeat."""
        with self.lock:
            duplicate = delivery is not None and delivery in self.seen
            record = {"id": delivery, "duplicate": duplicate, "verified": verified}
            print(json_line(record, body), flush=True)
            # Only now: what could not be taken must not look like a repeat when it comes again.
            if delivery is not None:
                self.seen[delivery] = None
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
            return duplicate


def json_line(record: dict, body: bytes) -> str:
    try:
        return json.dumps({**record, "body": json.loads(body)}, allow_nan=False)
    except (ValueError, RecursionError):  # A body that is not JSON is shown as text.
        return json.dumps({**record, "body": body.decode("utf-8", "replace")})


class Handler(BaseHTTPRequestHandler):
    """One connection. `key`, `require`, `max_body` and `inbox` are set by `main`."""

    protocol_version = "HTTP/1.1"  # With it comes keep-alive.
    timeout = READ_TIMEOUT
    disable_nagle_algorithm = True  # Head and body of an answer are two writes.

    key: bytes
    require: str
    max_body: int
    inbox: Inbox

    def do_POST(self) -> None:
        body = self.read_body()
        if body is None:
            return
        try:
            verified = verify(self.key, self.require, self.header, body, time.time())
            delivery = self.header("webhook-id")
            if delivery is not None and len(delivery) > 256:
                raise Refused("webhook-id is too long to be remembered")
        except Refused as reason:
            self.log_error("refused: %s", reason)
            self.answer(401, {"error": "signature rejected"})
            return
        self.answer(200, {"duplicate": self.inbox.take(delivery, verified, body)})

    def header(self, name: str) -> str | None:
        values = self.headers.get_all(name, [])
        if len(values) > 1:  # Which one was meant is not ours to guess.
            raise Refused(f"{name} is repeated")
        return values[0] if values else None

    def read_body(self) -> bytes | None:
        """Returns the raw body, or None after having answered why not."""
        length = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not re.fullmatch(r"[0-9]{1,18}", length):
            return self.hang_up(411, "a content-length is needed")
        if int(length) > self.max_body:
            return self.hang_up(413, f"the body is larger than {self.max_body} bytes")

        # A timeout for each read would let a sender that trickles hold the thread for hours.
        deadline = time.monotonic() + READ_TIMEOUT
        body = bytearray()
        while len(body) < int(length):
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                chunk = self.rfile.read1(int(length) - len(body))
            except TimeoutError:
                return self.hang_up(408, "the body did not arrive in time")
            if not chunk:
                self.close_connection = True
                return None
            body += chunk
        self.connection.settimeout(self.timeout)
        return bytes(body)

    def hang_up(self, status: int, error: str) -> None:
        """Answers and closes: what is left of the body would be read as the next request."""
        self.connection.settimeout(self.timeout)
        self.close_connection = True
        self.answer(status, {"error": error})

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-") -> None:
        """Accepted deliveries are on stdout and refusals have a line of their own."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # The default of 5 turns connections away in a burst.

    def handle_error(self, request, client_address) -> None:
        """A peer that goes away is no news; anything else is shown in full."""
        error = sys.exc_info()[1]
        if isinstance(error, ConnectionError):
            print(f"connection lost: {error}", file=sys.stderr)
        else:
            super().handle_error(request, client_address)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Receives signed webhooks.")
    parser.add_argument("--listen", default="127.0.0.1:8090", metavar="HOST:PORT")
    parser.add_argument("--secret", help="default: the environment's WEBHOOK_SECRET")
    parser.add_argument("--require", default="any", choices=[STANDARD, X_SIGNATURE, "both", "any"])
    parser.add_argument("--max-body", type=int, default=1024 * 1024, metavar="BYTES")
    options = parser.parse_args()

    host, colon, port = options.listen.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        parser.error("--listen must be HOST:PORT")
    options.address = (host, int(port))
    try:
        options.key = key_of(options.secret or os.environ.get("WEBHOOK_SECRET", ""))
    except binascii.Error:
        parser.error("what follows whsec_ in the secret is not base64")
    if not options.key:  # Anybody can sign with an empty key.
        parser.error("a secret is needed: WEBHOOK_SECRET or --secret")
    return options


def main() -> int:
    options = parse_options()
    Handler.key = options.key
    Handler.require = options.require
    Handler.max_body = options.max_body
    Handler.inbox = Inbox()
    try:
        server = Server(options.address, Handler)
    except OSError as error:
        print(f"cannot listen on {options.listen}: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with server:
        host, port = server.server_address[:2]
        print(json.dumps({"listening": f"http://{host}:{port}/"}), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
