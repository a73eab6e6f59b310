"""Compares answers with `math-verify`, in a process of its own. Not imported: `comparing.py` runs this file.

Each line of standard input is `{"gold": ..., "answer": ..., "cpu_s": ...}`; each line of standard output is
`{"equal": ...}` or `{"problem": ...}`. Comparing may take for ever, even inside one instruction (9^9^9^9), where no
handler of a signal would run. So the kernel's timer ends the whole process; `math-verify`'s own, which raise from
handlers, are off.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

_MEMORY_BYTES = 2 << 30


def _parsed(text: str) -> list[Any]:
    found: list[Any] = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
    return found


def _compare(gold: str, answer: str) -> dict[str, Any]:
    expected = _parsed(gold)
    if not any(not isinstance(one, str) for one in expected):
        return {"problem": "the expected answer is no mathematical expression"}
    try:
        return {"equal": bool(verify(expected, _parsed(answer), timeout_seconds=None))}
    except (MemoryError, RecursionError):
        return {"equal": False}


def _main() -> None:
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer of ours
    answers.write('{"ready": true}\n')
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        said = _compare(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
