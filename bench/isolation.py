"""Ten thousand endpoints of which a hundred hang and a hundred refuse: do the healthy ones notice?

Starts nats-server, a courier and receivers on loopback, publishes at a constant rate to endpoints at random, and
measures at the receiver how long after its publish each message arrives. Ends by itself. See bench/README.md.

usage: isolation.py [--rate 2000] [--seconds 60] [--endpoints 10000] [--hang 100] [--refuse 100]
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import time

from rig import Publisher, Rig, free_port


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
    lines = ['[egress]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]']
    for number in range(options.endpoints):
        port = "hanging" if number < options.hang else "healthy"
        if options.hang <= number < options.hang + options.refuse:
            port = "refusing"
        url = f"http://127.0.0.1:{ports[port]}/{number}"
        lines.append(f'[endpoints.e{number}]\nurl = "{url}"\nsecrets = ["plain:s3cret"]')
    return "\n".join(lines)


def publish(options, port):
    """Publishes at a constant rate; returns how many went to healthy endpoints, and how late it was at worst."""
    chance, healthy, worst = random.Random(7), 0, 0.0
    publisher, begun = Publisher(port), time.time()
    for number in range(options.rate * options.seconds):
        due = begun + number / options.rate
        now = time.time()
        if due > now:
            time.sleep(due - now)
        worst = max(worst, time.time() - due)
        endpoint = chance.randrange(options.endpoints)
        healthy += endpoint >= options.hang + options.refuse
        body = b"%.6f " % time.time() + b"x" * 1000
        publisher.send(Publisher.message(b"e%d" % endpoint, b"b-%d" % number, body))
    publisher.finish()
    return healthy, worst


def totals(rig, sick):
    """Attempts by outcome and holds by why, those of healthy endpoints apart; and open breakers."""
    counts = {}
    for name, labels, value in rig.metrics("hookbridge_egress_attempts_total", "hookbridge_egress_held_total"):
        key = labels.get("outcome") or labels.get("why")
        key = key if int(labels["destination"][1:]) < sick else f"healthy {key}"
        counts[key] = counts.get(key, 0) + int(value)
    counts["open breakers"] = int(sum(value for _, _, value in rig.metrics("hookbridge_egress_breaker_open")))
    return counts


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("rate", 2000), ("seconds", 60), ("endpoints", 10000), ("hang", 100), ("refuse", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ports = {name: free_port() for name in ("healthy", "hanging", "refusing")}
    done, result = multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(ports["healthy"], ports["hanging"], done, result))
    receiver.start()
    with Rig() as rig:
        started = rig.start_courier(configuration(options, ports))
        healthy, late = publish(options, rig.nats_port)
        time.sleep(5)
        counts, memory = totals(rig, options.hang + options.refuse), rig.memory(rig.courier)
    done.set()
    lags, hanging = result.get()
    receiver.join()
    only = sorted(lag for _, lag in lags)
    first = min(at for at, _ in lags)
    print(f"ready after {started:.2f} s with {options.endpoints} endpoints")
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
    print("courier:", json.dumps(counts), "memory MiB:", memory)


if __name__ == "__main__":
    main()
