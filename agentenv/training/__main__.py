"""python -m agentenv.training CONFIG.yaml: the trainer alone. The keys are those of `TrainerConfig`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from agentenv.cli.logs import configure_logging
from agentenv.errors import AgentEnvError
from agentenv.stopping import StopRequests
from agentenv.training.service import train
from agentenv.training.settings import TrainerConfig
from agentenv.yaml_file import read_yaml
from agentenv_tools.errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Train until the end or a signal. Exit status: 0 done, 1 failed, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m agentenv.training", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")
    options = parser.parse_args(argv)
    errors = Console(stderr=True, highlight=False)
    configure_logging(errors, verbose=options.verbose)
    logging.getLogger("agentenv.training").setLevel(logging.INFO)  # a line for each step
    try:
        config = read_yaml(options.config, TrainerConfig)
        return asyncio.run(_train(config))
    except (AgentEnvError, ToolError) as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1


async def _train(config: TrainerConfig) -> int:
    stops = StopRequests()
    ended = False

    async def work() -> None:
        nonlocal ended
        await train(config)
        ended = True

    with stops.from_signals():
        await stops.run(work())
    return 0 if ended else 130


if __name__ == "__main__":
    sys.exit(main())
