"""Requests at a steady pace over kept connections, each timed from when it was due.

A request that finds no connection free waits for one, and that wait counts: wrk, which sends the next request when the
last was answered, leaves it out. `select` waits in microseconds, where `epoll` of Python rounds up to a millisecond.
"""

import collections
import gc
import select
import socket
import time


class Answer:
    """Seconds after it was due: when the request was sent, and when it was answered."""

    def __init__(self, due, sent, answered, status):
        self.due, self.sent, self.answered, self.status = due, sent, answered, status


def whole(buffer):
    """Whether an answer has arrived to its last byte."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = buffer.lower().find(b"content-length:", 0, end)
    length = int(buffer[at + 15 : buffer.find(b"\r\n", at)]) if at > 0 else 0
    return len(buffer) >= end + 4 + length


def send(port, rate, requests, connections=64):
    """Sends these requests; returns an `Answer` for each, in the order in which they were answered."""
    # In turn, so that none is left unused until the server closes it.
    free = collections.deque(socket.create_connection(("127.0.0.1", port)) for _ in range(connections))
    for connection in free:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    all_of_them, busy, answers, number, count = list(free), {}, [], 0, len(requests)
    gc.disable()
    begun = time.monotonic() + 0.1
    give_up = begun + count / rate + 60
    while len(answers) < count:
        now = time.monotonic()
        if now > give_up:
            raise SystemExit(f"only {len(answers)} of {count} requests were answered in time")
        while number < count and free and begun + number / rate <= now:
            connection = free.popleft()
            connection.sendall(requests[number])
            busy[connection] = [begun + number / rate, time.monotonic(), b""]
            number += 1
        pause = begun + number / rate - time.monotonic() if number < count and free else 1
        for connection in select.select(list(busy), [], [], max(0, pause))[0]:
            state = busy[connection]
            data = connection.recv(65536)
            if not data:
                raise SystemExit("a connection was closed")
            state[2] += data
            if whole(state[2]):
                due, sent, buffer = busy.pop(connection)
                answers.append(Answer(due, sent - due, time.monotonic() - due, int(buffer[9:12])))
                free.append(connection)
    gc.enable()
    for connection in all_of_them:
        connection.close()
    return answers


def spread(seconds):
    """The usual words about a list of times."""
    ordered = sorted(seconds)
    at = lambda share: ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
    return f"p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, p99.9 {at(0.999):.2f} ms, worst {at(1):.2f} ms"
