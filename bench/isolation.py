"""Ten thousand endpoints of which a hundred hang and a hundred refuse: do the healthy ones notice?

Starts nats-server, a courier and receivers on loopback, publishes at a constant rate to endpoints at random, and
measures at the receiver how long after its publish each message arrives. Ends by itself. See bench/README.md.

usage: isolation.py [--rate 2000] [--seconds 60] [--endpoints 10000] [--hang 100] [--refuse 100]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("HOOKBRIDGE", ROOT / "target/release/hookbridge")
NATS_SERVER = os.environ.get("NATS_SERVER", ROOT / ".tools/nats-server")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Healthy(asyncio.Protocol):
    """Answers 204 at once, and notes how old each message is: its body begins with the time of its publish."""

    lags = []

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else len(head)])
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.lags.append((time.time(), time.time() - float(body.split(b" ", 1)[0])))
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


class Hanging(asyncio.Protocol):
    """Takes every request and never answers."""

    connections = 0

    def connection_made(self, transport):
        Hanging.connections += 1


def receive(healthy, hanging, done, result):
    async def main():
        loop = asyncio.get_running_loop()
        await loop.create_server(Healthy, "127.0.0.1", healthy, backlog=4096)
        await loop.create_server(Hanging, "127.0.0.1", hanging, backlog=4096)
        while not done.is_set():
            await asyncio.sleep(0.1)
        result.put((Healthy.lags, Hanging.connections))

    asyncio.run(main())


def configuration(options, ports):
    lines = [
        f'[nats]\nurl = "nats://127.0.0.1:{ports["nats"]}"',
        f'[admin]\nlisten = "127.0.0.1:{ports["admin"]}"',
        '[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]',
    ]
    for number in range(options.endpoints):
        port = "hanging" if number < options.hang else "healthy"
        if options.hang <= number < options.hang + options.refuse:
            port = "refusing"
        url = f'http://127.0.0.1:{ports[port]}/{number}'
        lines.append(f'[endpoints.e{number}]\nurl = "{url}"\nsecrets = ["plain:s3cret"]')
    return "\n".join(lines)


def publish(options, port):
    """Publishes at a constant rate; returns how many went to healthy endpoints, and how late it was at worst."""
    chance, healthy, worst = random.Random(7), 0, 0.0
    with socket.create_connection(("127.0.0.1", port)) as nats:
        nats.sendall(b'CONNECT {"headers":true,"verbose":false}\r\n')
        begun = time.time()
        for number in range(options.rate * options.seconds):
            due = begun + number / options.rate
            now = time.time()
            if due > now:
                time.sleep(due - now)
            worst = max(worst, time.time() - due)
            endpoint = chance.randrange(options.endpoints)
            healthy += endpoint >= options.hang + options.refuse
            headers = b"NATS/1.0\r\nHookbridge-Endpoint: e%d\r\nNats-Msg-Id: b-%d\r\n\r\n" % (endpoint, number)
            body = b"%.6f " % time.time() + b"x" * 1000
            nats.sendall(b"HPUB outbox.b %d %d\r\n%s%s\r\n" % (len(headers), len(headers) + len(body), headers, body))
        # A socket that is closed with something unread takes with it what was sent last.
        nats.sendall(b"PING\r\n")
        while b"PONG" not in nats.recv(65536):
            pass
    return healthy, worst


def metrics(port, sick):
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    totals = {}
    for line in page.splitlines():
        if line.startswith(("hookbridge_egress_attempts_total", "hookbridge_egress_held_total")):
            labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
            key = (labels.get("outcome") or labels.get("why")).strip('"')
            if int(labels["destination"].strip('"e')) >= sick:
                key = f"healthy {key}"
            totals[key] = totals.get(key, 0) + float(line.split()[-1])
        if line.startswith("hookbridge_egress_breaker_open") and line.endswith(" 1"):
            totals["open breakers"] = totals.get("open breakers", 0) + 1
    return totals


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    return {key: int(values[key].split()[0]) // 1024 for key in ("VmRSS", "VmHWM")}


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("rate", 2000), ("seconds", 60), ("endpoints", 10000), ("hang", 100), ("refuse", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ports = {name: free_port() for name in ("nats", "admin", "healthy", "hanging", "refusing")}
    done, result = multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(ports["healthy"], ports["hanging"], done, result))
    receiver.start()
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "hookbridge.toml"
        config.write_text(configuration(options, ports))
        log = open(pathlib.Path(folder) / "log", "w")
        nats = subprocess.Popen(
            [NATS_SERVER, "-a", "127.0.0.1", "-p", str(ports["nats"]), "-js", "-sd", f"{folder}/js"], stderr=log
        )
        courier = subprocess.Popen([BINARY, "courier", "--config", config], stdout=log, stderr=log)
        try:
            for _ in range(300):
                try:
                    if urllib.request.urlopen(f"http://127.0.0.1:{ports['admin']}/readyz").status == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.1)
            healthy, late = publish(options, ports["nats"])
            time.sleep(5)
            totals, memory = metrics(ports["admin"], options.hang + options.refuse), resident(courier.pid)
        finally:
            courier.send_signal(signal.SIGKILL)
            nats.send_signal(signal.SIGTERM)
            courier.wait()
            nats.wait()
    done.set()
    lags, hanging = result.get()
    receiver.join()
    only = sorted(lag for _, lag in lags)
    first = min(at for at, _ in lags)
    print(f"published to healthy endpoints {healthy}, arrived {len(only)}; publisher late by at most {late * 1000:.0f} ms")
    for share in (0.5, 0.9, 0.99, 0.999):
        print(f"start lag p{share * 100:g}: {only[int(len(only) * share)] * 1000:.1f} ms")
    print(f"start lag at worst: {only[-1] * 1000:.1f} ms")
    by_ten = {}
    for at, lag in lags:
        by_ten.setdefault(int(at - first) // 10 * 10, []).append(lag)
    p99 = {second: f"{sorted(of)[int(len(of) * 0.99)] * 1000:.0f} ms" for second, of in sorted(by_ten.items())}
    print("p99 by ten seconds:", p99)
    print("connections that hang:", hanging)
    print("courier:", json.dumps(totals), "memory MiB:", memory)


if __name__ == "__main__":
    main()
