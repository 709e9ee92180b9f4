"""nats-server and a courier on loopback for a measure, and what they say of themselves."""

import itertools
import json
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
BINARY = os.environ.get("HOOKBRIDGE", ROOT / "target/dist/hookbridge")
NATS_SERVER = os.environ.get("NATS_SERVER", ROOT / ".tools/nats-server")


# Without it nothing is delivered to loopback.
LOOPBACK = """[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]
"""
# An agent, and a client that may delegate to it and be called back at the receiver.
DELEGATION = """[agents.planner]
[callbacks]
allow = ["http://127.0.0.1:{receiver}/"]
secrets = ["plain:callback secret"]
[clients.shop]
token = "plain:shop-token"
"""

PORTS = itertools.cycle(random.sample(range(15_000, 30_000), 10_000))


def free_port():
    """A port that nobody has, of those that the system gives no client by chance."""
    for port in PORTS:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Rig:
    """Ends what it started when it is left."""

    def __init__(self):
        self.nats_port, self.monitor_port, self.admin_port = free_port(), free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory()
        self.log = open(pathlib.Path(self.folder.name) / "log", "w")
        self.courier = None

    def __enter__(self):
        self.start_nats()
        return self

    def start_nats(self):
        ports = ["-p", str(self.nats_port), "-m", str(self.monitor_port)]
        arguments = ["-a", "127.0.0.1", *ports, "-js", "-sd", f"{self.folder.name}/js"]
        self.nats = subprocess.Popen([NATS_SERVER, *arguments], stderr=self.log)

    def __exit__(self, *_):
        if self.courier:
            self.kill_courier()
        self.nats.send_signal(signal.SIGTERM)
        self.nats.wait()
        self.folder.cleanup()

    def start_courier(self, configuration):
        """Returns how many seconds it took until it was ready."""
        self.courier, took = self.start("courier", configuration, self.admin_port)
        return took

    def start(self, role, configuration, admin_port, under=()):
        """A process of this role, and how many seconds it took until it was ready. `under` is what runs it."""
        config = pathlib.Path(self.folder.name) / f"{role}.toml"
        own = f'[nats]\nurl = "nats://127.0.0.1:{self.nats_port}"\n[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
        config.write_text(own + configuration)
        begun = time.monotonic()
        process = subprocess.Popen([*under, BINARY, role, "--config", config], stdout=self.log, stderr=self.log)
        while time.monotonic() - begun < 60:
            if self.is_ready(admin_port):
                return process, time.monotonic() - begun
            time.sleep(0.02)
        process.kill()
        raise SystemExit(f"the {role} is not ready: " + pathlib.Path(self.log.name).read_text()[-2000:])

    @staticmethod
    def is_ready(admin_port):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz").status == 200
        except OSError:
            return False

    def kill_courier(self):
        self.courier.send_signal(signal.SIGKILL)
        self.courier.wait()
        self.courier = None

    def metrics(self, *names, admin_port=None):
        """The lines of these metrics, of the courier unless another is named: labels and value."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{admin_port or self.admin_port}/metrics").read().decode()
        for line in page.splitlines():
            if line.startswith(names):
                name, _, rest = line.partition("{")
                labels, _, value = rest.rpartition("} ") if rest else ("", "", line.split()[-1])
                pairs = (pair.split("=", 1) for pair in labels.split(",") if pair)
                yield name.split()[0], {key: text.strip('"') for key, text in pairs}, float(value)

    def attempts(self, outcome):
        found = self.metrics("hookbridge_egress_attempts_total")
        return int(sum(value for _, labels, value in found if labels["outcome"] == outcome))

    @staticmethod
    def memory(process):
        """MiB: now, and at most."""
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        return {key: int(values[key].split()[0]) // 1024 for key in ("VmRSS", "VmHWM")}


class Publisher:
    """Publishes to the outbox over a socket of its own."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(b'CONNECT {"headers":true,"verbose":false}\r\nSUB told 1\r\n')
        self.reader = self.socket.makefile("rb")

    @staticmethod
    def message(endpoint, identity, body):
        headers = b"NATS/1.0\r\nHookbridge-Endpoint: %s\r\nNats-Msg-Id: %s\r\n\r\n" % (endpoint, identity)
        return b"HPUB outbox.b %d %d\r\n%s%s\r\n" % (len(headers), len(headers) + len(body), headers, body)

    def send(self, block):
        self.socket.sendall(block)

    def request(self, subject, body=b""):
        """What the server's JetStream answers."""
        self.socket.sendall(b"PUB $JS.API.%s told %d\r\n%s\r\n" % (subject.encode(), len(body), body))
        while True:
            line = self.reader.readline()
            if not line:
                raise OSError("nats-server closed the connection")
            if line.startswith(b"PING"):
                self.socket.sendall(b"PONG\r\n")
            if line.startswith(b"MSG"):
                return json.loads(self.reader.read(int(line.split()[-1]) + 2))

    def stored(self):
        """The last sequence of OUTBOX."""
        return self.request("STREAM.INFO.OUTBOX")["state"]["last_seq"]

    def send_all(self, messages, block=1000):
        """Sends no faster than the stream stores: the server drops what it has no room to queue."""
        first = self.stored()
        for start in range(0, len(messages), block):
            self.send(b"".join(messages[start : start + block]))
            while self.stored() - first < start - 2 * block:
                time.sleep(0.001)
        while self.stored() - first < len(messages):
            time.sleep(0.01)

    def close(self):
        self.socket.close()

    def finish(self):
        # A socket that is closed with something unread takes with it what was sent last.
        self.stored()
        self.socket.close()
