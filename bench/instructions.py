"""How many instructions a request costs, held against bench/instructions.json: more than 5 % over it is a failure.

Runs the release build under callgrind, with nats-server beside it on loopback, and ends by itself within a minute.
Counts of instructions, unlike times, are nearly the same in every run, whatever else the machine does.
See bench/README.md.

usage: instructions.py [--update] [--profile FOLDER]
"""

import argparse
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import paced
import rig

BASELINE = pathlib.Path(__file__).resolve().with_suffix(".json")
# Of a path's count; a smaller change says nothing.
ALLOWED = 0.05
# The median of the blocks counts: a timer that fires in one of them does not.
WARM_UP, BLOCKS, REQUESTS = 100, 5, 200
CONFIGURATION = """
[gateway]
listen = "127.0.0.1:{gateway}"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
[endpoints.local]
url = "http://127.0.0.1:{receiver}/"
secrets = ["plain:s3cret"]
""" + rig.LOOPBACK + rig.DELEGATION
BODY = b'{"pad": "' + b"x" * 1012 + b'"}'
SIGNATURE = hmac.new(b"s3cret", BODY, hashlib.sha256).hexdigest().encode()
WRONG = hmac.new(b"other", BODY, hashlib.sha256).hexdigest().encode()


class Counted(rig.Rig):
    """nats-server, and one role of Hookbridge under callgrind."""

    def __init__(self, role):
        super().__init__()
        self.role, self.gateway_port, self.receiver = role, rig.free_port(), receiver()
        self.process, self.dumps, self.out = None, 0, f"{self.folder.name}/callgrind"

    def open(self):
        # One worker: which of several takes up what differs from run to run.
        under = ["env", "TOKIO_WORKER_THREADS=1", "valgrind", "--tool=callgrind", f"--callgrind-out-file={self.out}"]
        ports = {"gateway": self.gateway_port, "receiver": self.receiver.server_port}
        self.process, _ = self.start(self.role, CONFIGURATION.format(**ports), self.admin_port, under)

    def __exit__(self, *error):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        self.receiver.shutdown()
        super().__exit__(*error)

    def counted(self):
        """The instructions since this was asked before, and the file that says where they went."""
        # What follows an answer is the request's, too.
        time.sleep(0.1)
        ask = ["vgdb", f"--pid={self.process.pid}", "dump"]
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        self.dumps += 1
        file = pathlib.Path(f"{self.out}.{self.dumps}")
        if asked.returncode or not file.exists():
            raise SystemExit(f"callgrind gave no counts: {asked.stdout}{asked.stderr}")
        lines = file.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("totals:")).split()[1]), file


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes every delivery."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response_only(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def receiver():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Sender:
    """One kept connection; each request is sent when the one before is answered."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request, expected):
        self.socket.sendall(request)
        answer = b""
        while not paced.whole(answer):
            data = self.socket.recv(65536)
            if not data:
                raise SystemExit("the gateway closed the connection")
            answer += data
        if not (answer.startswith(b"HTTP/1.1 " + expected[0]) and expected[1] in answer):
            raise SystemExit(f"expected {expected}: {answer.decode()}")


class Outbox(rig.Publisher):
    """Publishes one message after the other, each when the courier has acked the one before."""

    def __init__(self, port):
        super().__init__(port)
        self.socket.settimeout(60)
        self.socket.sendall(b"SUB $JS.ACK.OUTBOX.> acked\r\n")
        # The server has taken note of it when it answers what follows.
        self.stored()

    def deliver(self, number):
        self.send(self.message(b"local", b"delivery-%08d" % number, BODY))
        while not (line := self.reader.readline()).startswith(b"MSG $JS.ACK.OUTBOX."):
            if not line:
                raise SystemExit("nats-server closed the connection")
            if line.startswith(b"PING"):
                self.socket.sendall(b"PONG\r\n")


def webhook(number, signature=SIGNATURE):
    head = b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n"
    names = b"X-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-%012d\r\nX-Hub-Signature-256: sha256=%s\r\n"
    return head + names % (number, signature) + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


def task(number, port):
    callback = b"http://127.0.0.1:%d/" % port
    body = b'{"task_id":"task-%08d","callback_url":"%s","prompt":"%s"}' % (number, callback, b"x" * 1000)
    head = b"POST /agents/planner/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-token\r\n"
    return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def gateway(counted):
    """What a gateway does: a name, and the function that makes it do it for the nth time."""
    sender = Sender(counted.gateway_port)
    new, known, wrong = (b"202", b'"duplicate":false'), (b"202", b'"duplicate":true'), (b"401", b"")
    yield "gateway: event", lambda number: sender.send(webhook(number), new)
    yield "gateway: duplicate", lambda number: sender.send(webhook(0), known)
    yield "gateway: wrong signature", lambda number: sender.send(webhook(number, WRONG), wrong)
    yield "gateway: task", lambda number: sender.send(task(number, counted.receiver.server_port), (b"202", b""))


def courier(counted):
    outbox = Outbox(counted.nats_port)
    yield "courier: delivery", outbox.deliver


def measured(role, paths, folder):
    """For each path: its instructions, and by what part of them the blocks differ."""
    with Counted(role) as counted:
        counted.open()
        for name, once in paths(counted):
            for number in range(WARM_UP):
                once(number)
            counted.counted()
            blocks = []
            for block in range(BLOCKS):
                first = WARM_UP + block * REQUESTS
                for number in range(first, first + REQUESTS):
                    once(number)
                instructions, file = counted.counted()
                blocks.append(instructions / REQUESTS)
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / f"{name.replace(': ', '-').replace(' ', '-')}.callgrind")
            median = statistics.median(blocks)
            yield name, round(median), (max(blocks) - min(blocks)) / median


def said_by(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def compared(found, baseline):
    """Prints the table; returns what is dearer, and what is cheaper, than it may be."""
    dearer, cheaper = [], []
    print(f"{'instructions per request':28} {'count':>9} {'baseline':>9} {'change':>8} {'spread':>8}")
    for name, count, spread in found:
        before = baseline.get(name)
        change = count / before - 1 if before else None
        told = "new" if change is None else f"{change:+.2%}"
        print(f"{name:28} {count:9} {before or '':>9} {told:>8} {spread:8.2%}", flush=True)
        if change is None or change > ALLOWED:
            dearer.append((name, told))
        elif change < -ALLOWED:
            cheaper.append((name, told))
    return dearer, cheaper


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true", help="write the counts down as the new baseline")
    parser.add_argument("--profile", type=pathlib.Path, help="a folder for what callgrind_annotate reads, one file a path")
    options = parser.parse_args()
    rig.BINARY = os.environ.get("HOOKBRIDGE", rig.ROOT / "target/release/hookbridge")
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    here = {"architecture": platform.machine()}
    if baseline.get("architecture", here["architecture"]) != here["architecture"] and not options.update:
        print(f"NOT MEASURED: the baseline is of {baseline['architecture']}, this machine is {here['architecture']}")
        return 0
    if not (shutil.which("valgrind") and shutil.which("vgdb")):
        print("valgrind is missing: apt-get install valgrind", file=sys.stderr)
        return 1
    here |= {"valgrind": said_by("valgrind", "--version"), "rustc": said_by("rustc", "--version")}
    for name, version in here.items():
        if baseline.get(name, version) != version:
            print(f"note: the baseline was taken with {baseline[name]}, this is {version}")
    found = [row for role in (gateway, courier) for row in measured(role.__name__, role, options.profile)]
    dearer, cheaper = compared(found, baseline.get("instructions", {}))
    if options.update:
        counts = {name: count for name, count, _ in found}
        BASELINE.write_text(json.dumps(here | {"instructions": counts}, indent=2) + "\n")
        print(f"written to {BASELINE.name}")
        return 0
    for name, change in cheaper:
        print(f"{name} became cheaper ({change}): take that into the baseline with bench/instructions.py --update")
    for name, change in dearer:
        print(
            f"{name} is more than {ALLOWED:.0%} over its baseline ({change}): make it cheaper, or take the new count "
            "into the baseline with bench/instructions.py --update and say in the commit why it is worth that",
            file=sys.stderr,
        )
    return 1 if dearer else 0


if __name__ == "__main__":
    sys.exit(main())
