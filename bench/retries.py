"""Retries by the number: do they cost the courier memory, does a restart find them, and what if many are due at once?

Fills RETRY with deliveries that failed once, kills the courier and starts it again, and then has a second lot fall due
together at a receiver that has recovered. Ends by itself. See bench/README.md.

usage: retries.py [--waiting 1000000] [--due 100000]
"""

import argparse
import asyncio
import multiprocessing
import time

from rig import Publisher, Rig, free_port


class Counting(asyncio.Protocol):
    """Answers 503 until it is told to be well, then 204; notes the second of every arrival and what is open at once."""

    well, seconds, open, most = None, {}, 0, 0

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
        Counting.open += 1
        Counting.most = max(Counting.most, Counting.open)

    def connection_lost(self, _):
        Counting.open -= 1

    def data_received(self, data):
        self.buffer += data
        while b"\r\n\r\nx" in self.buffer:
            self.buffer = self.buffer[self.buffer.index(b"\r\n\r\nx") + 5 :]
            if Counting.well.is_set():
                second = int(time.time())
                Counting.seconds[second] = Counting.seconds.get(second, 0) + 1
                self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                self.transport.write(b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n")


def receive(port, well, done, result):
    async def main():
        Counting.well = well
        await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", port, backlog=4096)
        while not done.is_set():
            await asyncio.sleep(0.1)
        result.put((Counting.seconds, Counting.most))

    asyncio.run(main())


def publish(port, endpoint, count):
    publisher = Publisher(port)
    publisher.send_all([Publisher.message(endpoint, b"%s-%d" % (endpoint, number), b"x") for number in range(count)])
    publisher.finish()


def wait_for(what, reached, seconds):
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > seconds:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(0.2)
    return time.monotonic() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--due", type=int, default=100_000)
    options = parser.parse_args()
    port, refusing = free_port(), free_port()
    well, done, result = multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(port, well, done, result))
    receiver.start()
    configuration = f"""
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
breaker = "none"
[endpoints.gone]
url = "http://127.0.0.1:{refusing}/"
signatures = []
retry = ["24h", "24h"]
[endpoints.ill]
url = "http://127.0.0.1:{port}/"
signatures = []
retry = ["60s", "60s", "60s"]
"""
    with Rig() as rig:
        rig.start_courier(configuration)
        print("courier with nothing to do, MiB:", rig.memory(rig.courier))
        begun = time.monotonic()
        publish(rig.nats_port, b"gone", options.waiting)
        for share in (0.1, 0.5, 1.0):
            wait_for("attempts", lambda: rig.attempts("retrying") >= options.waiting * share, 600)
            print(f"{rig.attempts('retrying')} waiting after {time.monotonic() - begun:.0f} s, MiB: courier", end=" ")
            print(rig.memory(rig.courier), "nats-server", rig.memory(rig.nats))
        rig.kill_courier()
        print(f"killed; ready again after {rig.start_courier(configuration):.2f} s", end=", ")
        publish(rig.nats_port, b"ill", options.due)
        took = wait_for("the second lot to fail", lambda: rig.attempts("retrying") >= options.due, 300)
        print(f"{options.due} more attempts within {took:.0f} s")
        well.set()
        took = wait_for("the second lot to arrive", lambda: rig.attempts("delivered") >= options.due, 300)
        print(f"all {options.due} delivered {took:.0f} s later, courier MiB:", rig.memory(rig.courier))
    done.set()
    seconds, most = result.get()
    receiver.join()
    first = min(seconds)
    print("arrivals by second:", [seconds.get(first + after, 0) for after in range(max(seconds) - first + 1)])
    print(f"arrived {sum(seconds.values())}; at most {most} connections at once")


if __name__ == "__main__":
    main()
