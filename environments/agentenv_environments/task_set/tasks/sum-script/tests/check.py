"""Runs sum.sh on numbers that nobody can know beforehand, in a process without anything of this one's."""

import random
import subprocess
import sys


def said(numbers: list[int]) -> str:
    command = ["/bin/sh", "./sum.sh", *map(str, numbers)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=5,
            env={"PATH": "/usr/bin:/bin"},
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return "nothing in time"
    return done.stdout.strip()


cases = [[], [7], *([random.randint(-999, 999) for _ in range(n)] for n in range(2, 12))]
wrong = [case for case in cases if said(case) != str(sum(case))]
sys.exit(f"wrong for {wrong[0]}" if wrong else 0)
