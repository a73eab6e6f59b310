"""Trajectory files of every version, and a way to break them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"
MINORS = range(9)


def golden(minor: int) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((GOLDEN / f"v1.{minor}.json").read_text())
    return data


def broken(minor: int, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    data = copy.deepcopy(golden(minor))
    change(data)
    return data
