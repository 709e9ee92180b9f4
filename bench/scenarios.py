"""What is measured: each scenario's variants, and the rows that they make in the report."""

import dataclasses
from collections.abc import Callable

import rounds
from rounds import FLOOR, HOOKBRIDGE


@dataclasses.dataclass
class Target:
    """`ratio` and `least` are to be reached, `added` (to the floor) and `most` not to be exceeded."""

    kind: str
    number: float
    words: str

    def is_reached(self, value, ratio, added):
        if self.kind in ("ratio", "least"):
            return (ratio if self.kind == "ratio" else value) >= self.number
        return (added if self.kind == "added" else value) <= self.number


@dataclasses.dataclass
class Row:
    title: str
    unit: str
    target: Target | None = None
    of: str = HOOKBRIDGE
    # What it is compared to.
    to: str | None = FLOOR
    # What of a round it shows.
    pick: Callable[[dict], float] = lambda round: round["value"]


@dataclasses.dataclass
class Scenario:
    name: str
    # Run in turn, as often as there are rounds, each as a function of the run.
    variants: dict[str, Callable]
    rows: list[Row]
    # Whether `make bench` runs it.
    short: bool = False
    # What needs no alternation has one round.
    once: bool = False


def ratio(number):
    return Target("ratio", number, f"{number:g} of the floor")


def both(measure):
    """The floor and Hookbridge in turn."""
    return {side: lambda run, side=side: measure(run, side) for side in (FLOOR, HOOKBRIDGE)}


def in_by_wrk(name, title, target=None, short=False, more_rows=(), **wrk):
    variants = both(lambda run, side: rounds.ingress(side, run.seconds, **wrk))
    return Scenario(name, variants, [Row(title, "/s", target), *more_rows], short)


def cpu(program, floor, what):
    """CPU seconds for a million are the µs for one."""

    def pick(round):
        used = round["cpu_us_per_event"]
        return used.get(program) or used.get(floor, 0)

    return Row(f"CPU of {what}, without load, NATS and receiver", "s per million", pick=pick)


def half_of_what_it_can(run):
    """Webhooks a second."""
    return run.median("ingress-64", HOOKBRIDGE) / 2


KB = 1024
SCENARIOS = [
    in_by_wrk("ingress-1", "ingress, 1 connection, 1 KB", connections=1),
    in_by_wrk(
        "ingress-64",
        "ingress, 64 connections, 1 KB",
        ratio(0.90),
        short=True,
        more_rows=[cpu("serve", "floor-in", "the gateway")],
    ),
    in_by_wrk("ingress-256", "ingress, 256 connections, 1 KB", connections=256),
    in_by_wrk("ingress-64k", "ingress, 64 connections, 64 KB", size=64 * KB),
    in_by_wrk("ingress-1m", "ingress, 64 connections, 1 MB", size=KB * KB),
    in_by_wrk("ingress-tenth", "ingress, 64 connections, 1 KB, 10 % duplicates", ids="tenth"),
    in_by_wrk("ingress-forged", "refused, 64 connections, 1 KB, every signature wrong", genuine=False),
    Scenario(
        "latency",
        both(lambda run, side: rounds.latency(side, half_of_what_it_can(run), run.seconds)),
        [
            Row("ingress p50 at half of the most", "ms", pick=lambda round: round["raw"]["latency_ms"]["p50"]),
            Row("ingress p99 at half of the most", "ms", Target("added", 1, "1 ms over the floor")),
        ],
        short=True,
    ),
    Scenario(
        "synced",
        both(lambda run, side: rounds.synced(side, run.seconds)),
        [Row("ingress, 256 connections, 1 KB, each write synced", "/s", Target("ratio", 6, "6 × the floor"))],
        short=True,
    ),
    Scenario(
        "replicas",
        both(lambda run, side: rounds.replicated(side, run.seconds)),
        [Row("ingress, 64 connections, 1 KB, three replicas", "/s")],
    ),
    Scenario(
        "egress",
        both(lambda run, side: rounds.egress(side, int(20_000 * run.seconds)))
        | {
            f"{side}, 1,000 endpoints": lambda run, side=side: rounds.egress(side, int(20_000 * run.seconds), 1000)
            for side in (FLOOR, HOOKBRIDGE)
        },
        [
            Row("egress to one endpoint, receipts on", "/s", ratio(0.60)),
            Row("egress to 1,000 endpoints", "/s", of=f"{HOOKBRIDGE}, 1,000 endpoints", to=f"{FLOOR}, 1,000 endpoints"),
            Row(
                "egress to 1,000 endpoints, and to one",
                "/s",
                Target("ratio", 0.9, "0.9 of one"),
                of=f"{HOOKBRIDGE}, 1,000 endpoints",
                to=HOOKBRIDGE,
            ),
            cpu("serve", "floor-out", "the courier"),
        ],
        short=True,
    ),
    Scenario(
        "egress-slow",
        both(lambda run, side: rounds.egress(side, int(6_000 * run.seconds), endpoints=100, delay_ms=100)),
        [Row("egress to 100 endpoints that take 100 ms", "/s")],
    ),
    Scenario(
        "circle",
        both(lambda run, side: rounds.circle(side, run.seconds)),
        [Row("webhook, agent, callback", "/s", Target("least", 8000, "8,000/s"))],
        short=True,
    ),
    Scenario(
        "circle-paced",
        both(lambda run, side: rounds.circle(side, run.seconds, rate=4000)),
        [
            Row(
                "webhook to callback p50, 4,000/s",
                "ms",
                pick=lambda round: round["raw"]["callbacks"]["received"]["circle_ms"]["p50"],
            ),
            Row("webhook to callback p99, 4,000/s", "ms", Target("most", 50, "50 ms")),
        ],
        short=True,
    ),
    Scenario(
        "footprint",
        {
            "idle": lambda run: rounds.idle("serve"),
            "idle gateway": lambda run: rounds.idle("gateway"),
            "idle courier": lambda run: rounds.idle("courier"),
            "idle floor": lambda run: rounds.idle(FLOOR),
            "start": lambda run: rounds.start(HOOKBRIDGE),
            "start floor": lambda run: rounds.start(FLOOR),
            "held": lambda run: rounds.held(HOOKBRIDGE),
            "held floor": lambda run: rounds.held(FLOOR),
            "size": lambda run: rounds.size(HOOKBRIDGE),
            "size floor": lambda run: rounds.size(FLOOR),
        },
        [
            Row("idle memory, both roles in one process", "MB", Target("most", 20, "20 MB"), "idle", "idle floor"),
            Row("idle memory, gateway alone", "MB", None, "idle gateway", None),
            Row("idle memory, courier alone", "MB", None, "idle courier", None),
            Row("memory at 10,000 open connections", "MB", Target("most", 200, "200 MB"), "held", "held floor"),
            Row("start until ready", "ms", Target("most", 150, "150 ms"), "start", "start floor"),
            Row("stripped binary", "MB", Target("most", 20, "20 MB"), "size", "size floor"),
        ],
        short=True,
        once=True,
    ),
]
