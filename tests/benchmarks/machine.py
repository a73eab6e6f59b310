"""Where and on what the figures were taken."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]


def facts() -> dict[str, str]:
    """Machine, software and commit, as text."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": _first_line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_line("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "bubblewrap": _output("bwrap", "--version"),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def commit() -> str:
    """The commit, with `-dirty` when the working tree differs from it; `unknown` outside of git."""
    return _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")


def _first_line(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _output(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return "not installed"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"
