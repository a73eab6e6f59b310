"""An environment as a process of its own, fed by a fake policy: `python serving_process.py URL RUN_DIR`."""

import asyncio
import logging
import random
import sys
from pathlib import Path
from typing import Any

from agentenv import Item
from agentenv.api.client import EnvironmentClient
from agentenv.run.directory import RunDirectory
from agentenv.serve import serve
from tests.agentenv.fake_env import EchoEnv, make_env


class DrawingEnv(EchoEnv):
    """Scores every trajectory by lot, so that a group can be told by its scores; keeps its place."""

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        return random.random()

    def checkpoint_state(self) -> dict[str, Any] | None:
        return {"next_item": self.next_item}


async def main(url: str, run_dir: str) -> None:
    env = make_env(
        lambda request: "right",
        env_cls=DrawingEnv,
        latency_s=0.1,
        total_steps=-1,
        max_num_workers=4,
        max_batches_offpolicy=40,
        data_path_to_save_groups=run_dir,
    )
    directory = await RunDirectory.open(Path(run_dir), extend=True)
    link = EnvironmentClient(url, timeout_s=10)
    try:
        await serve(env, link, directory, poll_s=0.02)
    finally:
        await link.close()
        await directory.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    asyncio.run(main(*sys.argv[1:]))
