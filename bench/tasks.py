"""Tasks from the client's request to its last callback: how many a second, how soon, and what many open ones cost.

Starts nats-server, a gateway, a courier, an agent that answers at once, and a receiver on loopback, one part after the
other, and ends by itself. Needs wrk and nginx. See bench/README.md.

usage: tasks.py [--full SECONDS] [--paced SECONDS] [--asked SECONDS] [--open TASKS]
                [--rate 2000] [--bytes 1000] [--deadline DURATION] [--serve] [--profile FOLDER]
Without a part named: --full 15 --paced 20 --asked 20
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time
import urllib.request

import paced
from rig import DELEGATION, LOOPBACK, Rig, free_port

BENCH = pathlib.Path(__file__).resolve().parent
IDLE = "idle"
SHOWN = ("50%", "99%", "Requests/sec:", "Socket", "Non-2xx")
SHOP = {"authorization": "Bearer shop-token"}
NGINX = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; client_body_buffer_size 64k; client_body_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }} }}
"""
CONFIGURATION = '[gateway]\nlisten = "127.0.0.1:{gateway}"\n' + LOOPBACK + DELEGATION


class Office(Rig):
    """nats-server, a gateway and a courier; or one process that is both."""

    def __init__(self, together=False):
        super().__init__()
        self.together, self.gateway = together, None
        self.gateway_port, self.receiver_port = free_port(), free_port()
        self.gateway_admin = self.admin_port if together else free_port()
        self.url = f"http://127.0.0.1:{self.gateway_port}"
        self.configuration = CONFIGURATION.format(gateway=self.gateway_port, receiver=self.receiver_port)

    def __enter__(self):
        super().__enter__()
        self.open()
        return self

    def __exit__(self, *error):
        self.close()
        super().__exit__(*error)

    def open(self):
        """Returns how many seconds it took until all was ready."""
        if self.together:
            self.courier, took = self.start("serve", self.configuration, self.admin_port)
            return took
        took = self.start_courier(self.configuration)
        self.gateway, more = self.start("gateway", self.configuration, self.gateway_admin)
        return took + more

    def close(self):
        """As a power failure would."""
        if self.gateway:
            self.gateway.kill()
            self.gateway.wait()
            self.gateway = None
        if self.courier:
            self.kill_courier()

    def processes(self):
        both = {"hookbridge": self.courier} if self.together else {"gateway": self.gateway, "courier": self.courier}
        return both | {"nats-server": self.nats}

    def memories(self):
        return ", ".join(f"{name} {self.memory(process)}" for name, process in self.processes().items())

    def taken(self):
        """Tasks that the gateway answered 202 for the first time."""
        found = self.metrics("hookbridge_task_requests_total", admin_port=self.gateway_admin)
        return int(sum(value for _, labels, value in found if labels["outcome"] == "submitted"))

    def moves(self, status):
        found = self.metrics("hookbridge_task_moves_total")
        return int(sum(value for _, labels, value in found if labels["status"] == status))

    def monitor(self, page):
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}/{page}"))

    def streams(self):
        """Messages in each stream."""
        accounts = self.monitor("jsz?streams=true")["account_details"]
        return {stream["name"]: stream["state"]["messages"] for stream in accounts[0]["stream_detail"]}

    def load(self, prefix, seconds, bytes, more=""):
        """wrk, with tasks whose ids begin so."""
        callback = f"http://127.0.0.1:{self.receiver_port}/cb"
        arguments = ["wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", "-s", BENCH / "task.lua", self.url]
        return subprocess.Popen([*arguments, prefix, callback, str(bytes), more], stdout=subprocess.PIPE, text=True)

    def nginx(self):
        """A receiver that answers at once."""
        config = pathlib.Path(self.folder.name) / "nginx.conf"
        config.write_text(NGINX.format(folder=self.folder.name, port=self.receiver_port))
        return subprocess.Popen(["nginx", "-c", config])


def request(number, port, bytes):
    body = b'{"task_id":"p-%08d","callback_url":"http://127.0.0.1:%d/cb","prompt":"%s"}' % (number, port, b"x" * bytes)
    head = b"POST /agents/planner/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-token\r\n"
    return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def update(task, status, bytes):
    body = b'{"task_id":"%s","status":"%s","result":"%s"}' % (task, status, b"y" * bytes)
    headers = b"NATS/1.0\r\nNats-Msg-Id: %s-%s\r\n\r\n" % (status, task)
    return b"HPUB outbox.planner %d %d\r\n%s%s\r\n" % (len(headers), len(headers) + len(body), headers, body)


def work(port, status, bytes, ready):
    """The agent: takes every task over a core subscription, and answers it at once. Ended from outside."""
    nats = socket.create_connection(("127.0.0.1", port))
    nats.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    nats.sendall(b'CONNECT {"headers":true,"verbose":false}\r\nSUB tasks.planner.* 1\r\nPING\r\n')
    left = b""
    while data := nats.recv(1 << 18):
        data, at, answers = left + data, 0, []
        while (end := data.find(b"\r\n", at)) >= 0:
            line, after = data[at:end], end + 2
            if line.startswith(b"HMSG"):
                words = line.split(b" ")
                after += int(words[-1]) + 2
                if len(data) < after:
                    break
                answers.append(update(words[1][len("tasks.planner.") :], status, bytes))
            elif line == b"PING":
                answers.append(b"PONG\r\n")
            elif line == b"PONG":
                ready.set()
            at = after
        left = data[at:]
        if answers:
            nats.sendall(b"".join(answers))


class Agent:
    """Works for as long as the block lasts."""

    def __init__(self, office, status, bytes):
        ready = multiprocessing.Event()
        self.process = multiprocessing.Process(target=work, args=(office.nats_port, status, bytes, ready))
        self.process.start()
        if not ready.wait(10):
            raise SystemExit("the agent is not ready")

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.terminate()
        self.process.join()


class Callbacks(asyncio.Protocol):
    """Answers 204 at once, and notes when the callback of each task came."""

    arrived = {}

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while paced.whole(self.buffer):
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            task, self.buffer = rest[12:22].decode(), rest[length:]
            self.arrived.setdefault(task, []).append(time.monotonic())
            self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


def receive(port, done, result):
    async def main():
        await asyncio.get_running_loop().create_server(Callbacks, "127.0.0.1", port, backlog=4096)
        while not done.is_set():
            await asyncio.sleep(0.1)
        result.put(Callbacks.arrived)

    asyncio.run(main())


def cpu(pid):
    """Seconds of CPU that a process and its children have used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu, children))


def used(processes):
    """What these processes have used, and how long the cores had nothing to do."""
    idle = sum(map(int, pathlib.Path("/proc/stat").read_text().split(maxsplit=6)[4:6]))
    return {name: cpu(process.pid) for name, process in processes.items()} | {IDLE: idle / os.sysconf("SC_CLK_TCK")}


def since(before, after):
    return {name: after[name] - before[name] for name in after}


def per_task(spent, tasks, seconds):
    """µs of CPU by process, and how many cores these took; what they and idling leave, others took meanwhile."""
    idle = spent.pop(IDLE) / seconds
    each = ", ".join(f"{name} {used / tasks * 1e6:.0f}" for name, used in spent.items())
    all_of_it = sum(spent.values())
    return f"CPU µs: {each}; together {all_of_it / tasks * 1e6:.0f}; cores: {all_of_it / seconds:.2f}, idle {idle:.2f}"


def wait_for(what, reached, seconds):
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > seconds:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - begun


def profile(folder, processes, seconds):
    """Lets perf look at these processes meanwhile."""
    watch = lambda name, pid: ["perf", "record", "-q", "-g", "-F", "499", "-o", f"{folder}/{name}.data", "-p", str(pid)]
    return [
        subprocess.Popen([*watch(name, process.pid), "--", "sleep", str(seconds)])
        for name, process in processes.items()
        if folder
    ]


def full(options):
    """As many tasks as the gateway takes, and all the way to their callbacks."""
    with Office(options.serve) as office, Agent(office, b"completed", options.bytes) as agent:
        nginx = office.nginx()
        try:
            processes = office.processes() | {"agent": agent, "nginx": nginx}
            before, messages, begun = used(processes), office.monitor("varz"), time.monotonic()
            watching = profile(options.profile, office.processes(), options.full)
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            wrk = office.load("f", options.full, options.bytes)
            said = [line.strip() for line in wrk.communicate()[0].splitlines()]
            print("full: wrk:", ", ".join(" ".join(line.split()) for line in said if line.startswith(SHOWN)))
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            load = usage.ru_utime + usage.ru_stime - children.ru_utime - children.ru_stime
            posted, seconds, done = office.taken(), time.monotonic() - begun, office.attempts("delivered")
            rate = f"{posted / seconds:.0f}/s"
            print(f"full: {posted} tasks taken in {seconds:.1f} s, {rate}; {done} called back by then")
            # wrk leaves with requests on their way: what the agent was offered counts.
            delivered = lambda: office.attempts("delivered") >= office.streams()["OUTBOX"] >= office.taken()
            wait_for("callbacks", delivered, 300)
            seconds, tasks = time.monotonic() - begun, office.attempts("delivered")
            spent = since(before, used(processes)) | {"wrk": load}
            print(f"full: {tasks} tasks from request to callback in {seconds:.1f} s: {tasks / seconds:.0f}/s")
            print("full: a task's", per_task(spent, tasks, seconds))
            after = office.monitor("varz")
            to, by = ((after[key] - messages[key]) / tasks for key in ("in_msgs", "out_msgs"))
            print(f"full: NATS messages a task: {to:.1f} to the server, {by:.1f} from it; stored:", office.streams())
            print("full: moves:", office.moves("completed"), "MiB:", office.memories(), flush=True)
            for watcher in watching:
                watcher.wait(60)
        finally:
            nginx.terminate()
            nginx.wait()


def steady(options):
    """Tasks at a constant rate: how long until each is called back."""
    count = options.rate * options.paced
    with Office(options.serve) as office, Agent(office, b"completed", options.bytes) as agent:
        done, result = multiprocessing.Event(), multiprocessing.Queue()
        receiver = multiprocessing.Process(target=receive, args=(office.receiver_port, done, result))
        receiver.start()
        try:
            requests = [request(number, office.receiver_port, options.bytes) for number in range(count)]
            processes = office.processes() | {"agent": agent, "receiver": receiver}
            generator, before, begun = time.process_time(), used(processes), time.monotonic()
            answers = paced.send(office.gateway_port, options.rate, requests)
            late = wait_for("callbacks", lambda: office.attempts("delivered") >= count, 60)
            spent, seconds = since(before, used(processes)), time.monotonic() - begun
            spent["generator"] = time.process_time() - generator
        finally:
            done.set()
            arrived = result.get(timeout=60)
            receiver.join()
    refused = sum(answer.status != 202 for answer in answers)
    # The connections come back in any order; a due time says which task it was.
    first = min(answer.due for answer in answers)
    number = lambda answer: round((answer.due - first) * options.rate)
    lags = [arrived[f"p-{number(answer):08d}"][0] - answer.due for answer in answers if answer.status == 202]
    twice = sum(len(times) > 1 for times in arrived.values())
    print(f"paced: {count} tasks at {options.rate}/s, {refused} refused, {len(arrived)} called back, {twice} twice")
    print(f"paced: the last callback {late:.2f} s after the last answer")
    print("paced: request sent after it was due:", paced.spread(answer.sent for answer in answers))
    print("paced: due to answered:", paced.spread(answer.answered for answer in answers))
    print("paced: due to callback:", paced.spread(lags))
    print("paced: a task's", per_task(spent, count, seconds), flush=True)


def publish(office, block):
    with socket.create_connection(("127.0.0.1", office.nats_port)) as nats:
        nats.sendall(b'CONNECT {"headers":true,"verbose":false}\r\n' + block + b"PING\r\n")
        reader = nats.makefile("rb")
        while reader.readline() != b"PONG\r\n":
            pass


def asked(options):
    """Tasks with two moves, both called back, asked for at a constant rate."""
    tasks = 20_000
    with Office(options.serve) as office:
        nginx = office.nginx()
        try:
            with Agent(office, b"working", options.bytes):
                requests = [request(number, office.receiver_port, options.bytes) for number in range(tasks)]
                paced.send(office.gateway_port, options.rate, requests)
                wait_for("the first callbacks", lambda: office.attempts("delivered") >= tasks, 60)
            names = [b"p-%08d" % number for number in range(tasks)]
            for start in range(0, tasks, 500):
                updates = (update(name, b"completed", options.bytes) for name in names[start : start + 500])
                publish(office, b"".join(updates))
                wait_for("the callbacks", lambda: office.attempts("delivered") >= tasks + start, 60)
            wait_for("the second callbacks", lambda: office.attempts("delivered") >= 2 * tasks, 60)
            history = json.load(ask(office, "/tasks/p-00000007"))["history"]
            print("asked: a task:", [(step["status"], step.get("callback", {}).get("outcome")) for step in history])
            # Every task is asked for about as often, none twice in a row.
            wanted = [names[number * 7919 % tasks] for number in range(options.rate * options.asked)]
            head = b"GET /tasks/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-token\r\n\r\n"
            generator, before, begun = time.process_time(), used(office.processes()), time.monotonic()
            answers = paced.send(office.gateway_port, options.rate, [head % name for name in wanted])
            spent, seconds = since(before, used(office.processes())), time.monotonic() - begun
            spent["generator"] = time.process_time() - generator
        finally:
            nginx.terminate()
            nginx.wait()
    wrong = sum(answer.status != 200 for answer in answers)
    rate = f"{options.rate}/s"
    print(f"asked: {len(answers)} requests at {rate} for {tasks} tasks of two moves, {wrong} not answered 200")
    print("asked: sent after due:", paced.spread(answer.sent for answer in answers))
    print("asked: due to answered:", paced.spread(answer.answered for answer in answers))
    print("asked: a request's", per_task(spent, len(answers), seconds), flush=True)


def ask(office, path):
    return urllib.request.urlopen(urllib.request.Request(office.url + path, headers=SHOP), timeout=30)


def look(office, tasks):
    """How long a page and a task take, one after the other, on a machine that does nothing else."""

    def took(path):
        begun = time.monotonic()
        page = json.load(ask(office, path))
        return time.monotonic() - begun, page

    pages = [took("/tasks?limit=50") for _ in range(20)]
    assert len(pages[0][1]["tasks"]) == 50
    print("  first page of 50:", paced.spread(seconds for seconds, _ in pages))
    pages = [took(f"/tasks?limit=50&cursor={tasks // 2}")[0] for _ in range(20)]
    print("  a page of 50 in the middle:", paced.spread(pages))
    # wrk keeps the first request that it makes to itself.
    print("  a task:", paced.spread(took(f"/tasks/open0-{number + 2:08d}")[0] for number in range(500)), flush=True)


def open_ones(options):
    """Tasks that nobody answers: what they cost, and what starting again costs with them."""
    more = f'"deadline":"{options.deadline}",' if options.deadline else ""
    with Office(options.serve) as office:
        print("open: 0 tasks, MiB:", office.memories(), flush=True)
        for step, share in enumerate((0.1, 0.5, 1)):
            before, begun = office.taken(), time.monotonic()
            wrk = office.load(f"open{step}", 1800, options.bytes, more)
            wait_for("tasks", lambda: office.taken() >= options.open * share, 1800)
            wrk.send_signal(signal.SIGINT)
            wrk.communicate()
            tasks, seconds = office.taken(), time.monotonic() - begun
            print(f"open: {tasks} tasks, {(tasks - before) / seconds:.0f}/s; MiB: {office.memories()}", flush=True)
            look(office, tasks)
        stored = sum(file.stat().st_size for file in pathlib.Path(office.folder.name).rglob("*") if file.is_file())
        print(f"open: on disk {stored / 2**20:.0f} MiB; stored:", office.streams())
        office.close()
        print(f"open: hookbridge killed; all of it ready again after {office.open():.2f} s; MiB: {office.memories()}")
        for how in (signal.SIGTERM, signal.SIGKILL):
            begun = time.monotonic()
            office.nats.send_signal(how)
            office.nats.wait()
            ended = time.monotonic()
            office.start_nats()
            healthy = wait_for("nats-server", lambda: is_healthy(office), 300)
            known = lambda: office.is_ready(office.gateway_admin) and answers(office)
            known = healthy + wait_for("the gateway", known, 300)
            print(f"open: nats-server ended by {how.name} in {ended - begun:.2f} s; after its start: healthy", end=" ")
            print(f"{healthy:.2f} s, a task is answered {known:.2f} s; MiB: {office.memories()}", flush=True)
        look(office, tasks)


def is_healthy(office):
    try:
        return office.monitor("healthz")["status"] == "ok"
    except OSError:
        return False


def answers(office):
    try:
        return ask(office, "/tasks/open0-00000002").status == 200
    except OSError:
        return False


def main():
    parser = argparse.ArgumentParser()
    for part in ("full", "paced", "asked", "open"):
        parser.add_argument(f"--{part}", type=int, default=0)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=1000, help="of a prompt and of a result")
    parser.add_argument("--deadline", help="of the open tasks")
    parser.add_argument("--serve", action="store_true", help="gateway and courier in one process")
    parser.add_argument("--profile", help="a folder for what perf sees of each process in the part --full")
    options = parser.parse_args()
    if not (options.full or options.paced or options.asked or options.open):
        options.full, options.paced, options.asked = 15, 20, 20
    parts = {full: options.full, steady: options.paced, asked: options.asked, open_ones: options.open}
    for part, wanted in parts.items():
        if wanted:
            part(options)


if __name__ == "__main__":
    main()
