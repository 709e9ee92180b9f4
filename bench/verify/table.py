#!/usr/bin/env python3
"""Prints what `cargo bench` measured as a Markdown table: the engine, the bare code, and what is between."""

import json
import pathlib

root = pathlib.Path(__file__).parent / "target" / "criterion"


def median(preset: str, what: str) -> float:
    estimates = json.loads((root / preset / what / "new" / "estimates.json").read_text())
    return estimates["median"]["point_estimate"]


rows = sorted((median(folder.name, "verify") - median(folder.name, "bare"), folder.name)
              for folder in root.iterdir() if (folder / "verify").is_dir())
print("| preset | bare HMAC, µs | verify, µs | added, µs |\n| --- | --- | --- | --- |")
for added, preset in rows:
    print(f"| {preset} | {median(preset, 'bare') / 1000:.2f} | {median(preset, 'verify') / 1000:.2f} | {added / 1000:.2f} |")
over = [preset for added, preset in rows if added > 3000]
print(f"\n{len(rows)} names; more than 3 µs is added for {len(over)}: {', '.join(over) or 'none'}.")
