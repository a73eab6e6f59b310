"""Runs in the Python that has atroposlib: what sending a group costs the event loop of an environment of Atropos.

Reads one line of JSON, `{"url", "group", "times"}`, and prints the seconds of processor time of the loop's thread for
each time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

from atroposlib.envs.base import BaseEnv


async def main(url: str, group: dict[str, Any], times: int) -> list[float]:
    """By the methods that every such environment inherits."""
    sender = SimpleNamespace(config=SimpleNamespace(rollout_server_url=url), env_id=None)
    post = BaseEnv._post_json_with_compression
    sender._post_json_with_compression = lambda *args: post(sender, *args)
    costs = []
    for _ in range(times):
        began = time.thread_time()
        await BaseEnv._send_scored_data_to_api(sender, group)
        costs.append(time.thread_time() - began)
    return costs


if __name__ == "__main__":
    order = json.loads(sys.stdin.readline())
    taken = asyncio.run(main(order["url"], order["group"], order["times"]))
    sys.stdout.write(json.dumps(taken) + "\n")
