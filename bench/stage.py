"""One round of a measure: servers, the program that is measured, load and receivers on loopback.

Each round begins with an empty nats-server and a folder of its own, so that what its streams hold at the end can be
counted against what was sent. `with Stage(...)` ends everything it started, however it is left.
"""

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

from rig import BINARY, LOOPBACK, NATS_SERVER, ROOT, Publisher, free_port

BENCH = pathlib.Path(__file__).resolve().parent
PROGRAMS = pathlib.Path(os.environ.get("BENCH_PROGRAMS", BENCH / "target/release"))
SECRET = "s3cret"
TICKS = os.sysconf("SC_CLK_TCK")

NATS = """server_name: n{number}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
max_payload: 8MB
jetstream {{ store_dir: "{folder}/js{number}", {jetstream} }}
"""
CLUSTER = 'cluster {{ name: bench, listen: "127.0.0.1:{route}", routes: [{routes}] }}\n'
HOOKBRIDGE = """[nats]
url = {servers}
{nats}
[gateway]
listen = "127.0.0.1:{gateway}"
max_body = "2MiB"
{more}
[admin]
listen = "127.0.0.1:{admin}"
[sources.github]
preset = "github"
secrets = ["plain:{secret}"]
""" + LOOPBACK
ENDPOINT = '[endpoints.e{number}]\nurl = "http://127.0.0.1:{receiver}/e{number}"\nsecrets = ["plain:{secret}"]\n'
AGENT = '[agents.bench]\nevents = ["events.github.>"]\n'


class Trouble(Exception):
    """A round that could not be measured."""


class Program:
    """A process, and the CPU that it has used, also after its end."""

    def __init__(self, name, command, log, **more):
        self.name, self.log, self.ended = name, log, None
        # In a group of its own: Ctrl-C is ours to hear, and ours to pass on.
        self.process = subprocess.Popen(list(map(str, command)), stderr=log, start_new_session=True, **more)
        self.pid = self.process.pid

    def cpu(self):
        """Seconds, of all its threads."""
        if self.ended is not None:
            return self.ended
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def wait(self, seconds):
        """Waits for its end, and returns what it printed."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name} did not end within {seconds} s")
            time.sleep(0.005)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.ended = usage.ru_utime + usage.ru_stime
        # A few lines: they have waited in the pipe.
        return self.process.stdout.read() if self.process.stdout else ""

    def has_ended(self):
        """Whether it has, without taking note of it."""
        return self.ended is not None or bool(os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def memory(self):
        """Megabytes in memory."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        return round(int(values["VmRSS"].split()[0]) * 1024 / 1e6, 1)

    def end(self, how=signal.SIGTERM):
        """Ends it, by force if it does not want to. Returns what it printed."""
        if self.ended is not None:
            return ""
        # Not by Popen, which would look whether it has ended and so lose what it has used.
        os.kill(self.pid, how)
        try:
            return self.wait(20)
        except Trouble:
            os.kill(self.pid, signal.SIGKILL)
            return self.wait(20)


class Stage:
    """nats-server, the programs of one side, and what has been counted."""

    def __init__(self, side, servers=1, jetstream=""):
        self.side, self.jetstream = side, jetstream
        self.exit = contextlib.ExitStack()
        self.ports = [(free_port(), free_port(), free_port()) for _ in range(servers)]
        self.gateway, self.receiver, self.admin, self.second_admin = (free_port() for _ in range(4))
        self.programs, self.commands = {}, {}

    def __enter__(self):
        with self.exit:
            self.folder = self.exit.enter_context(tempfile.TemporaryDirectory(prefix="hookbridge-bench-"))
            self.log = self.exit.enter_context(open(f"{self.folder}/log", "w"))
            for number in range(len(self.ports)):
                self.start_nats(number)
            for _, monitor, _ in self.ports:
                wait_for("nats-server", lambda: self.page(monitor, "healthz") == {"status": "ok"}, 30)
            self.exit = self.exit.pop_all()
        return self

    def __exit__(self, kind, error, _):
        with self.exit:
            if isinstance(error, Exception):
                self.log.flush()
                said = pathlib.Path(self.log.name).read_text().splitlines()
                print("\n".join([line for line in said if " [INF] " not in line][-20:]), flush=True)

    def start_nats(self, number):
        port, monitor, route = self.ports[number]
        values = {"number": number, "port": port, "monitor": monitor, "folder": self.folder}
        text = NATS.format(**values, jetstream=self.jetstream)
        if len(self.ports) > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{other}"' for _, _, other in self.ports)
            text += CLUSTER.format(route=route, routes=routes)
        config = pathlib.Path(self.folder) / f"nats{number}.conf"
        config.write_text(text)
        self.start("nats-server" if len(self.ports) == 1 else f"nats-server {number}", [NATS_SERVER, "-c", config])

    def start(self, name, command, **more):
        self.commands[name] = readable(command, self.folder)
        program = Program(name, command, self.log, **({"stdout": self.log} | more))
        self.programs[name] = program
        self.exit.callback(program.end)
        return program

    @staticmethod
    def await_program(program, reached, every=0.02):
        """Waits until it works; returns the milliseconds that this took."""
        begun = time.monotonic()
        wait_for(program.name, lambda: reached() or program.has_ended(), 30, every)
        if program.has_ended():
            raise Trouble(f"{program.name} did not start")
        return (time.monotonic() - begun) * 1000

    # What is measured.

    @property
    def nats_url(self):
        return f"nats://127.0.0.1:{self.ports[0][0]}"

    def start_hookbridge(self, role, nats="", gateway="", endpoints=0, agent=False, admin=None):
        """A process of this role that is ready; and the milliseconds until it was."""
        text = HOOKBRIDGE.format(
            servers=json.dumps([f"nats://127.0.0.1:{port}" for port, _, _ in self.ports]),
            nats=nats,
            gateway=self.gateway,
            more=gateway,
            admin=admin or self.admin,
            secret=SECRET,
        )
        for number in range(endpoints):
            text += ENDPOINT.format(number=number, receiver=self.receiver, secret=SECRET)
        config = pathlib.Path(self.folder) / f"{role}.toml"
        config.write_text(text + (AGENT if agent else ""))
        program = self.start(role, [BINARY, role, "--config", config])
        return program, self.await_program(program, lambda: is_ready(admin or self.admin), every=0.001)

    def start_floor_in(self, replicas=1):
        command = [PROGRAMS / "floor-in", self.nats_url, f"127.0.0.1:{self.gateway}", SECRET, replicas]
        program = self.start("floor-in", command)
        return program, self.await_program(program, lambda: listens(self.gateway), every=0.001)

    def start_floor_out(self):
        url = f"http://127.0.0.1:{self.receiver}"
        self.start("floor-out", [PROGRAMS / "floor-out", self.nats_url, url, SECRET])

    def start_receiver(self, delay_ms=0):
        listen = f"127.0.0.1:{self.receiver}"
        command = [PROGRAMS / "hookbridge-load", "receive", "--listen", listen, "--delay-ms", delay_ms]
        self.await_program(self.start("receiver", command), lambda: listens(self.receiver))

    def start_agent(self):
        command = [PROGRAMS / "hookbridge-load", "agent", "--nats", self.nats_url, "--endpoint", "e0"]
        agent = self.start("agent", command, stdout=subprocess.PIPE, text=True)
        if not agent.process.stdout.readline():
            raise Trouble("the agent did not start")

    # What drives it.

    def wrk(self, seconds, connections=64, size=1024, ids="distinct", genuine=True):
        """As many webhooks as are answered. What `max.lua` counted; each id ends with its number, from 2 on."""
        body = b'{"pad":"' + b"x" * (size - 10) + b'"}'
        signature = hmac.new(SECRET.encode() if genuine else b"wrong", body, hashlib.sha256).hexdigest()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", BENCH / "max.lua"]
        command += [f"http://127.0.0.1:{self.gateway}", "bench", size, signature, ids]
        output = self.start("load", command, stdout=subprocess.PIPE, text=True).wait(seconds + 60)
        return json.loads(output.splitlines()[-1])

    def pace(self, rate, seconds):
        """So many webhooks a second. What `pace` counted; each id ends with its number, from 0 on."""
        command = [PROGRAMS / "hookbridge-load", "pace", "--to", f"127.0.0.1:{self.gateway}", "--secret", SECRET]
        command += ["--rate", int(rate), "--seconds", seconds]
        return json.loads(self.start("load", command, stdout=subprocess.PIPE, text=True).wait(seconds + 60))

    def hold(self, connections):
        """Opens so many connections, which stay. What `hold` counted."""
        command = [PROGRAMS / "hookbridge-load", "hold", "--to", f"127.0.0.1:{self.gateway}", "--secret", SECRET]
        holder = self.start("load", [*command, "--connections", connections], stdout=subprocess.PIPE, text=True)
        return json.loads(holder.process.stdout.readline() or "{}")

    # What is known afterwards.

    def audit(self, first, last, sure, without=None):
        """Which of the ids with these numbers EVENTS holds, and how often; those up to `sure` must be there."""
        command = [PROGRAMS / "hookbridge-load", "audit", "--nats", self.nats_url]
        command += ["--first", first, "--last", last, "--sure", sure]
        command += ["--without", without] if without else []
        return json.loads(self.start("audit", command, stdout=subprocess.PIPE, text=True).wait(60))

    def received(self):
        return self.page(self.receiver, "")

    def streams(self):
        """Messages in each stream."""
        accounts = self.page(self.ports[0][1], "jsz?streams=true").get("account_details") or [{"stream_detail": []}]
        return {stream["name"]: stream["state"]["messages"] for stream in accounts[0]["stream_detail"]}

    def settle(self, stream, quiet=0.3, seconds=30):
        """Waits until no message comes any more; returns how many there are."""
        last, since = None, time.monotonic()
        deadline = since + seconds
        while time.monotonic() - since < quiet:
            now = self.streams().get(stream, 0)
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() > deadline:
                raise Trouble(f"{stream} does not come to rest")
            time.sleep(0.02)
        return last

    def nats(self):
        """A connection for requests, and to publish to the outbox."""
        return contextlib.closing(Publisher(self.ports[0][0]))

    @staticmethod
    def page(port, path):
        with contextlib.suppress(OSError):
            return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10))
        return {}

    def meter(self):
        return Meter(self)

    def fallen(self):
        """Programs that have ended by themselves. Load and audits do when they are done."""
        mine = (program for program in self.programs.values() if program.name not in ("load", "audit"))
        return [program.name for program in mine if program.has_ended()]


class Meter:
    """CPU from here to `stop`: by program, and of everybody else."""

    def __init__(self, stage):
        self.stage, self.begun = stage, time.monotonic()
        self.before = {program: program.cpu() for program in stage.programs.values()}
        self.own, self.busy = sum(os.times()[:2]), busy()

    def stop(self):
        """Seconds passed; CPU seconds by program; how many cores others took meanwhile."""
        seconds = time.monotonic() - self.begun
        programs = self.stage.programs.items()
        spent = {name: round(program.cpu() - self.before.get(program, 0), 3) for name, program in programs}
        spent = {name: cpu for name, cpu in spent.items() if cpu > 0}
        spent["bench.py"] = round(sum(os.times()[:2]) - self.own, 3)
        others = (busy() - self.busy - sum(spent.values())) / seconds
        return seconds, spent, round(max(0, others), 2)


def busy():
    """CPU seconds that the machine has worked for programs, what it was kept from included."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, _, _, steal = map(int, fields[:8])
    return (user + nice + system + steal) / TICKS


def wait_for(what, reached, seconds, every=0.02):
    deadline = time.monotonic() + seconds
    while not (value := reached()):
        if time.monotonic() > deadline:
            raise Trouble(f"waited {seconds} s for {what}")
        time.sleep(every)
    return value


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def is_ready(admin):
    """Asks over a bare socket, which takes a fraction of a millisecond."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", admin), timeout=1) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 200")
    return False


def readable(command, folder):
    """A command without this machine's folders."""
    program, *words = map(str, command)
    words = (word.replace(f"{ROOT}/", "").replace(folder, "$FOLDER") for word in words)
    return " ".join([pathlib.Path(program).name, *words])
