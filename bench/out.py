"""Publishes messages to the outbox as fast as a socket takes them, and waits for their deliveries."""

import socket
import sys
import time
import urllib.request

nats_port, admin_port, count = map(int, sys.argv[1:4])
body = b'{"pad":"' + b"x" * 1012 + b'"}'


def message(number):
    headers = b"NATS/1.0\r\nHookbridge-Endpoint: local\r\nNats-Msg-Id: bench-%d\r\n\r\n" % number
    return b"HPUB outbox.bench %d %d\r\n%s%s\r\n" % (len(headers), len(headers) + len(body), headers, body)


def delivered():
    page = urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics").read().decode()
    lines = [line for line in page.splitlines() if line.startswith("hookbridge_egress_attempts_total")]
    return sum(int(float(line.split()[-1])) for line in lines if 'outcome="delivered"' in line)


blocks = [b"".join(map(message, range(start, min(start + 1000, count)))) for start in range(0, count, 1000)]
with socket.create_connection(("127.0.0.1", nats_port)) as nats:
    nats.sendall(b'CONNECT {"headers":true,"verbose":false}\r\n')
    begun = time.monotonic()
    for block in blocks:
        nats.sendall(block)
    while delivered() < count and time.monotonic() - begun < 120:
        time.sleep(0.05)
    took = time.monotonic() - begun
done = delivered()
print(f"out: {done} of {count} delivered, {done / took:.0f}/s")
sys.exit(0 if done == count else 1)
