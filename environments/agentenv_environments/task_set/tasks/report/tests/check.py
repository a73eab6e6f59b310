"""Reads the report as data; nothing of the agent's runs here."""

import json
import pathlib

EXPECTED = {"total": 7, "errors": 2, "busiest": "/b"}

try:
    report = json.loads(pathlib.Path("report.json").read_bytes()[:100_000])
except (OSError, ValueError, RecursionError):
    report = None
right = {
    name: type(report) is dict and type(report.get(name)) is type(value) and report[name] == value
    for name, value in EXPECTED.items()
}
parts = {name: float(fits) for name, fits in right.items()}
print(json.dumps({"reward": float(all(right.values())), **parts}))
