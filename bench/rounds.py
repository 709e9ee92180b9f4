"""What one round of each kind does: drives one side, then counts what came of everything that was sent.

Each function returns a round: `value` is what the table shows, `lost` and `doubled` must be 0, the rest is for the
report. A webhook is lost if it was answered 2xx and EVENTS does not hold it, a delivery if its message was stored and
the receiver did not get it, or got it and its receipt is missing. It is doubled if it stands in EVENTS twice, or came
to the receiver twice.
"""

import json
import os
import statistics
import time
import urllib.request

from stage import BINARY, PROGRAMS, Stage, Trouble

HOOKBRIDGE, FLOOR = "hookbridge", "floor"
# How long no delivery may come before the rest is given up.
PATIENCE = 20
# What is broken on purpose, to see that it is counted: "event" or "delivery".
FAULT = os.environ.get("BENCH_FAULT")


def ingress(side, seconds, **wrk):
    """As many webhooks as are answered, over kept connections."""
    with Stage(side) as stage:
        start_gateway(stage)
        return drive(stage, seconds, **wrk)


def synced(side, seconds):
    """The same at a server that syncs each write to disk. The floor publishes one by one, many in flight."""
    with Stage(side, jetstream="sync_interval: always") as stage:
        start_gateway(stage, nats='durability = "synced"')
        return drive(stage, seconds, connections=256)


def replicated(side, seconds):
    """The same at three servers, each with a copy of every stream."""
    with Stage(side, servers=3) as stage:
        start_gateway(stage, nats="replicas = 3", replicas=3)
        return drive(stage, seconds, connections=64)


def start_gateway(stage, nats="", gateway="", replicas=1):
    if stage.side == HOOKBRIDGE:
        return stage.start_hookbridge("serve", nats=nats, gateway=gateway)[0]
    return stage.start_floor_in(replicas)[0]


def drive(stage, seconds, genuine=True, ids="distinct", **wrk):
    meter = stage.meter()
    told = stage.wrk(seconds, genuine=genuine, ids=ids, **wrk)
    measured = meter.stop()
    accepted = told["answered"] - told["refused"]
    if genuine:
        counted = count_events(stage, told, tenth=ids == "tenth")
        answered = accepted
    else:
        # Each is refused, and nothing may be stored.
        counted = {"lost": 0, "doubled": stage.settle("EVENTS") + accepted, "refused": 0}
        answered = told["refused"]
    return make_round(stage, answered / told["seconds"], answered, measured, counted, told)


def count_events(stage, told, tenth=False):
    """What EVENTS holds of what wrk sent.

    wrk leaves when its time is over, with a request in flight on each connection. These alone may be missing: there are
    no more of them than requests without an answer, and they are among the last that were sent.
    """
    stage.settle("EVENTS")
    break_event(stage)
    accepted, refused = told["answered"] - told["refused"], told["refused"] + told["broken"]
    unanswered = told["sent"] - told["answered"]
    last_moment = told["answered"] / told["seconds"] * told["max_ms"] / 1000 + 2 * unanswered
    sure = max(1, int(told["sent"] - last_moment))
    held = stage.audit(2, told["sent"], sure, without=10 if tenth else None)
    if held["strange"]:
        raise Trouble(f"{held['strange']} events with ids that nobody sent")
    repeated = told["sent"] // 10 if tenth else 0
    lost = max(0, held["missing"] - refused, accepted - repeated - held["distinct"])
    return {"lost": lost, "doubled": held["doubled"], "refused": refused, "events": held["distinct"]} | dead(stage)


def dead(stage):
    """Nothing here gives a reason for a dead letter."""
    letters = stage.streams().get("DEAD", 0)
    if letters:
        raise Trouble(f"{letters} dead letters")
    return {}


def make_round(stage, value, events, measured, counted, raw):
    if stage.fallen():
        raise Trouble(f"{', '.join(stage.fallen())} ended")
    seconds, spent, others = measured
    cpu = {name: round(cpu / max(1, events) * 1e6, 1) for name, cpu in spent.items()}
    about = {"events": events, "seconds": round(seconds, 2), "cpu_us_per_event": cpu, "cores_of_others": others}
    return {"value": value} | about | counted | {"raw": raw, "commands": stage.commands}


def latency(side, rate, seconds):
    """p99 of webhooks that come at a constant rate, each timed from when it was due."""
    with Stage(side) as stage:
        start_gateway(stage)
        meter = stage.meter()
        told = stage.pace(rate, seconds)
        measured = meter.stop()
        return make_round(stage, told["latency_ms"]["p99"], told["sent"], measured, count_paced(stage, told), told)


def count_paced(stage, told):
    """Each one was waited for, so each that was answered 2xx is there, exactly."""
    stage.settle("EVENTS")
    break_event(stage)
    held = stage.audit(0, told["sent"] - 1, told["sent"] - 1)
    accepted = told["statuses"].get("202", 0)
    refused = told["sent"] - accepted
    lost = max(0, accepted - held["distinct"])
    return {"lost": lost, "doubled": held["doubled"], "refused": refused, "events": held["distinct"]} | dead(stage)


def egress(side, messages, endpoints=1, delay_ms=0):
    """Deliveries a second out of an outbox that is full.

    Its durable is paused while it is filled, so that neither side has to be started with messages there: then a
    courier would look up each one's receipt. What wakes a durable that is no longer paused is the next message.
    """
    with Stage(side) as stage:
        stage.start_receiver(delay_ms)
        start_courier(stage, endpoints)
        with stage.nats() as nats:
            pause(nats, "2100-01-01T00:00:00Z")
            body = b'{"pad":"' + b"x" * 1014 + b'"}'
            message = lambda number: nats.message(b"e%d" % (number % endpoints), b"out-%d" % number, body)
            nats.send_all([message(number) for number in range(messages - 1)])
            pause(nats, None)
            meter, begun = stage.meter(), time.monotonic()
            nats.send(message(messages - 1))
            took = until_delivered(stage, messages, begun)
            measured = meter.stop()
        return make_round(stage, messages / took, messages, measured, count_deliveries(stage, messages), {})


def start_courier(stage, endpoints):
    if stage.side == HOOKBRIDGE:
        stage.start_hookbridge("serve", endpoints=endpoints)
    else:
        stage.start_floor_out()
        await_durable(stage)


def await_durable(stage):
    with stage.nats() as nats:
        there = lambda: "error" not in nats.request("CONSUMER.INFO.OUTBOX.courier")
        stage.await_program(stage.programs["floor-out"], there)


def pause(nats, until):
    answer = nats.request("CONSUMER.PAUSE.OUTBOX.courier", json.dumps({"pause_until": until} if until else {}).encode())
    if "error" in answer:
        raise Trouble(f"the durable cannot be paused: {answer['error']}")


def until_delivered(stage, messages, begun):
    """Seconds until the receiver has them all and, where there are receipts, each is stored."""
    receipts = stage.side == HOOKBRIDGE
    last, since = -1, time.monotonic()
    while True:
        done = stage.received().get("distinct", 0)
        if receipts and done >= messages:
            done = min(done, stage.streams().get("RECEIPTS", 0))
        now = time.monotonic()
        if done >= messages or now - since > PATIENCE:
            return now - begun
        if done != last:
            last, since = done, now
        time.sleep(0.02)


def count_deliveries(stage, messages):
    """What the receiver and RECEIPTS know of so many messages."""
    if stage.side == HOOKBRIDGE:
        stage.settle("RECEIPTS")
    break_delivery(stage)
    received, streams = stage.received(), stage.streams()
    receipts = streams.get("RECEIPTS", 0) if stage.side == HOOKBRIDGE else messages
    lost = max(0, messages - received["distinct"], messages - receipts)
    doubled = received["doubled"] + received["without_id"]
    return {"lost": lost, "doubled": doubled, "received": received, "streams": streams} | dead(stage)


def circle(side, seconds, rate=None):
    """Webhook, event, agent, outbox message, callback: the way from the first to the last.

    As fast as wrk is answered, it is events a second until the last callback has come. At a rate, it is the p99 from
    when a webhook was due until its callback came.
    """
    with Stage(side) as stage:
        stage.start_receiver()
        if side == HOOKBRIDGE:
            stage.start_hookbridge("courier", endpoints=1, agent=True)
            stage.start_hookbridge("gateway", agent=True, admin=stage.second_admin)
        else:
            stage.start_floor_in()
            stage.start_floor_out()
            await_durable(stage)
        stage.start_agent()
        meter, begun = stage.meter(), time.monotonic()
        told = stage.pace(rate, seconds) if rate else stage.wrk(seconds)
        events = stage.settle("EVENTS", quiet=0.1)
        took = until_delivered(stage, events, begun)
        measured = meter.stop()
        counted = count_paced(stage, told) if rate else count_events(stage, told)
        callbacks = count_deliveries(stage, events)
        counted |= {key: counted[key] + callbacks[key] for key in ("lost", "doubled")}
        value = callbacks["received"]["circle_ms"]["p99"] if rate else events / took
        return make_round(stage, value, events, measured, counted, told | {"callbacks": callbacks})


# Faults, to see that they are found.


def break_event(stage):
    """Takes an event out of the middle of the stream."""
    if FAULT == "event":
        with stage.nats() as nats:
            middle = nats.request("STREAM.INFO.EVENTS")["state"]["last_seq"] // 2
            nats.request("STREAM.MSG.DELETE.EVENTS", b'{"seq":%d}' % middle)


def break_delivery(stage):
    """Delivers once more what has been delivered."""
    if FAULT == "delivery":
        for _ in range(2):
            url, headers = f"http://127.0.0.1:{stage.receiver}/", {"webhook-id": "again"}
            urllib.request.urlopen(urllib.request.Request(url, b"{}", headers, method="POST"))


# What it takes to be there.


def quiet(value, **raw):
    return {"value": value, "lost": 0, "doubled": 0, "raw": raw}


def start(side, times=10):
    """Milliseconds from the start of the process until it is ready, at a server where it has been before."""
    with Stage(side) as stage:
        took = []
        for _ in range(times + 1):
            program, ms = stage.start_hookbridge("serve") if side == HOOKBRIDGE else stage.start_floor_in()
            took.append(round(ms, 1))
            program.end()
        return quiet(statistics.median(took[1:]), first=took[0], others=took[1:])


def idle(role, seconds=5):
    """Megabytes in memory of a process that has nothing to do."""
    with Stage(FLOOR if role == FLOOR else HOOKBRIDGE) as stage:
        if role == FLOOR:
            stage.start_floor_out()
            programs = [stage.start_floor_in()[0], stage.programs["floor-out"]]
        else:
            programs = [stage.start_hookbridge(role)[0]]
        time.sleep(seconds)
        return quiet(sum(program.memory() for program in programs))


def held(side, connections=10_000):
    """Megabytes in memory with so many open connections, each used once."""
    with Stage(side) as stage:
        gateway = start_gateway(stage, gateway='header_timeout = "5m"')
        before = gateway.memory()
        told = stage.hold(connections)
        now = gateway.memory()
        if told["open"] != connections:
            raise Trouble(f"not all connections are open: {told}")
        events = stage.settle("EVENTS")
        return quiet(now, before=before, told=told) | {"lost": max(0, connections - events)}


def size(side):
    """Megabytes of the binary."""
    path = BINARY if side == HOOKBRIDGE else PROGRAMS / "floor-in"
    return quiet(round(os.stat(path).st_size / 1e6, 1))
