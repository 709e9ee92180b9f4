"""A run as one Markdown table and as one JSON document."""

import json
import os
import pathlib
import platform
import re
import statistics
import subprocess

from rig import BINARY, NATS_SERVER, ROOT

LIBRARIES = ("async-nats", "axum", "hyper", "hyper-util", "tokio")


def table_rows(scenario, results):
    """The numbers of each row: medians over the rounds that succeeded."""
    results = results.get(scenario.name, {})
    for row in scenario.rows:
        mine = [round for round in results.get(row.of, []) if "failed" not in round]
        other = [round for round in results.get(row.to, []) if "failed" not in round] if row.to else []
        value = statistics.median(map(row.pick, mine)) if mine else None
        to = statistics.median(map(row.pick, other)) if other else None
        ratio = value / to if value is not None and to else None
        added = value - to if value is not None and to is not None else None
        yield {
            "scenario": scenario.name,
            "title": row.title,
            "unit": row.unit,
            "hookbridge": value,
            "floor": to,
            "ratio": ratio,
            "added": added,
            "compared": row.target.kind if row.target else None,
            "target": row.target.words if row.target else None,
            "reached": reached(row.target, value, ratio, added),
            "lost": sum(round["lost"] for round in mine + other),
            "doubled": sum(round["doubled"] for round in mine + other),
        }


def reached(target, value, ratio, added):
    if not target:
        return None
    needed = {"ratio": ratio, "added": added}.get(target.kind, value)
    return None if needed is None else target.is_reached(value, ratio, added)


def markdown(document):
    """The table, what each event cost, and the machine."""
    lines = ["| | hookbridge | floor | ratio | target | reached | lost / doubled |"]
    lines += ["| --- | --: | --: | --: | --- | --- | --: |"]
    for row in document["table"]:
        said = {True: "yes", False: "**no**", None: ""}[row["reached"]]
        compared = number(row["added"], row["unit"], "+") if row["compared"] == "added" else number(row["ratio"])
        numbers = (number(row["hookbridge"], row["unit"]), number(row["floor"], row["unit"]), compared)
        counts = f"{row['lost']} / {row['doubled']}"
        lines.append("| " + " | ".join([row["title"], *numbers, row["target"] or "", said, counts]) + " |")
    lines += ["", "Medians; the floor of the row of 1,000 endpoints and one is Hookbridge's own rate to one.", ""]
    lines += ["| scenario | rounds: rate or ms | CPU µs per event | cores of others |", "| --- | --- | --- | --- |"]
    for name, variants in document["rounds"].items():
        for variant, rounds in variants.items():
            lines += costs(f"{name}: {variant}", [round for round in rounds if "cpu_us_per_event" in round])
    lines += ["", *[f"- **failed**: {failure}" for failure in document["failures"]], *machine_lines(document)]
    return "\n".join(lines) + "\n"


def costs(title, rounds):
    if not rounds:
        return
    middle = sorted(rounds, key=lambda round: round["value"])[len(rounds) // 2]
    used = ", ".join(f"{name} {micros:g}" for name, micros in middle["cpu_us_per_event"].items())
    values = " · ".join(number(round["value"]) for round in rounds)
    others = " · ".join(f"{round['cores_of_others']:.1f}" for round in rounds)
    yield f"| {title} | {values} | {used} | {others} |"


def machine_lines(document):
    machine, versions = document["machine"], document["versions"]
    yield f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}"
    yield "- " + ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"- `{document['command']}`, {document['begun']}, {document['minutes']:.1f} minutes"


def number(value, unit="", sign=""):
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:{sign},.{digits}f}{unit if unit == '/s' else f' {unit}' if unit else ''}"


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    cpu, kernel = model[1] if model else platform.machine(), f"{platform.system()} {platform.release()}"
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory * 1024 / 1e9, 1), "kernel": kernel}


def versions():
    lock = (ROOT / "bench/Cargo.lock").read_text()
    commit = first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if first_line(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"]):
        commit += " and changes"
    own = {
        "hookbridge": f"{first_line([BINARY, '--version'])} ({commit})",
        "rustc": first_line(["rustc", "--version"]),
        "nats-server": first_line([NATS_SERVER, "--version"]),
        "wrk": " ".join(first_line(["wrk", "-v"]).split()[1:3]),
    }
    own = {name: version.removeprefix(f"{name} ").removeprefix(f"{name}: ") for name, version in own.items()}
    return own | {name: re.search(rf'name = "{name}"\nversion = "(.*)"', lock)[1] for name in LIBRARIES}


def first_line(command):
    try:
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    except OSError:
        return "unknown"
    return output.splitlines()[0].strip() if output else ""


def write(folder, document):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(document))
