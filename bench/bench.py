"""Webhooks in, the broker, webhooks out: how much, how soon, at what cost, and whether anything was lost or doubled.

The floor (the smallest programs that the same libraries allow) and Hookbridge take turns in one run, since a machine is
never the same twice. Everything runs on loopback and ends by itself. Exit code 1 if anything was lost or doubled or a
round failed; a target that is not reached is only said. See bench/README.md.

usage: bench.py [--full] [--only NAME]... [--list] [--seconds 6] [--rounds 2] [--out target/bench]
"""

import argparse
import pathlib
import resource
import shutil
import signal
import statistics
import sys
import time

import report
from rig import BINARY, NATS_SERVER, ROOT
from rounds import HOOKBRIDGE
from scenarios import SCENARIOS
from stage import PROGRAMS, Trouble


class Run:
    """What has been measured so far."""

    def __init__(self, options):
        self.seconds, self.rounds = options.seconds, options.rounds
        self.results, self.failures = {}, []

    def scenario(self, scenario):
        results = self.results.setdefault(scenario.name, {})
        for _ in range(1 if scenario.once else self.rounds):
            for variant, measure in scenario.variants.items():
                results.setdefault(variant, []).append(self.round(f"{scenario.name}: {variant}", measure))

    def round(self, title, measure):
        begun = time.monotonic()
        try:
            round = measure(self)
        except (Trouble, OSError, KeyError, ValueError) as error:
            self.failures.append(f"{title}: {error!r}")
            print(f"{title}: FAILED: {error!r}", flush=True)
            return {"failed": repr(error), "lost": 0, "doubled": 0}
        if round["lost"] or round["doubled"]:
            self.failures.append(f"{title}: lost {round['lost']}, doubled {round['doubled']}")
        counts = f"lost {round['lost']}, doubled {round['doubled']}"
        others = f", others {round['cores_of_others']} cores" if "cores_of_others" in round else ""
        took = time.monotonic() - begun
        print(f"{title}: {report.number(round['value'])} ({counts}{others}; {took:.0f} s)", flush=True)
        return round

    def median(self, name, variant):
        """Of a scenario that has been measured; else of one round that is not reported."""
        rounds = [round["value"] for round in self.results.get(name, {}).get(variant, []) if "failed" not in round]
        if not rounds:
            scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
            rounds = [scenario.variants[variant](self)["value"]]
            self.results.setdefault(name, {})[variant] = [{"value": rounds[0], "lost": 0, "doubled": 0}]
        return statistics.median(rounds)


def main():
    options = arguments()
    chosen = [scenario for scenario in SCENARIOS if wanted(scenario, options)]
    if options.list:
        for scenario in SCENARIOS:
            rows = "; ".join(row.title for row in scenario.rows)
            print(f"{scenario.name:16} {'' if scenario.short else '(full) '}{rows}")
        return 0
    prepare()
    run, begun, date = Run(options), time.monotonic(), time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    stopped = None
    try:
        for scenario in chosen:
            run.scenario(scenario)
    except KeyboardInterrupt:
        stopped = "stopped before its end"
        run.failures.append(stopped)
    document = {
        "command": " ".join(["bench.py", *sys.argv[1:]]),
        "begun": date,
        "minutes": (time.monotonic() - begun) / 60,
        "seconds_per_round": options.seconds,
        "machine": report.machine(),
        "versions": report.versions(),
        "table": [row for scenario in chosen for row in report.table_rows(scenario, run.results)],
        "rounds": run.results,
        "failures": run.failures,
    }
    report.write(options.out, document)
    print(f"\n{report.markdown(document)}\nwritten to {options.out}")
    return 1 if run.failures else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every scenario, in 3 rounds of 8 seconds")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this scenario; repeatable")
    parser.add_argument("--list", action="store_true", help="say which scenarios there are")
    parser.add_argument("--seconds", type=int, help="of load in one round")
    parser.add_argument("--rounds", type=int, help="of each variant of a scenario")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench", help="a folder for the report")
    options = parser.parse_args()
    options.seconds = options.seconds or (8 if options.full else 6)
    options.rounds = options.rounds or (3 if options.full else 2)
    unknown = set(options.only) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        parser.error(f"no scenario named {', '.join(sorted(unknown))}; --list says which there are")
    return options


def wanted(scenario, options):
    return scenario.name in options.only if options.only else scenario.short or options.full


def prepare():
    """Says what is missing before anything is started; makes room for connections; ends in order when it is told to."""
    missing = []
    if not shutil.which("wrk"):
        missing.append("wrk is not there: `apt-get install wrk`")
    if not pathlib.Path(NATS_SERVER).exists():
        missing.append(f"no nats-server at {NATS_SERVER}: `make tools`")
    programs = [BINARY, *(PROGRAMS / name for name in ("floor-in", "floor-out", "hookbridge-load"))]
    missing += [f"no program {path}: `make bench` builds it" for path in programs if not pathlib.Path(path).exists()]
    if missing:
        sys.exit("\n".join(missing))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    sys.exit(main())
