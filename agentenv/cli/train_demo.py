"""`agentenv train-demo`: a policy that visibly learns, over the real protocol, in minutes and without a GPU."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.cli.commands import FAILED, INTERRUPTED, OK, build_environment
from agentenv.cli.environments import load_environment
from agentenv.cli.layers import ConfigFile
from agentenv.cli.settings import resolve
from agentenv.errors import ConfigError
from agentenv.stopping import StopRequests

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from agentenv.cli.settings import Settings
    from agentenv.env import AgentEnv
    from agentenv.training.demo.config import DemoConfig
    from agentenv.training.demo.run import Demo, DemoResult

_HELP = """
Starts a trajectory server, the environment and a trainer as three processes that speak only HTTP to each other, shows
the reward while the policy learns, and measures it before and after on held-out tasks. RUN_DIR holds the checkpoints,
the curve (reward.png), the logs, and result.json. A demo that was stopped goes on when it is given its --run-dir again.

Exit status: 0 when the policy got better by at least evaluation.target_gain, 1 when not or when a process failed,
130 when it was stopped.

    agentenv train-demo configs/train_demo.yaml
    agentenv train-demo configs/train_demo.yaml --steps 20 --run-dir runs/short
"""


def add_train_demo_parser(chosen: Any) -> None:
    """The parser of `train-demo`."""
    parser: argparse.ArgumentParser = chosen.add_parser(
        "train-demo",
        help="train a tiny policy and show that it got better (needs the extra `torch`)",
        description="Train the tiny policy of an environment, and show that it got better.",
        epilog=_HELP,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="such as configs/train_demo.yaml")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where to write (default: a new one below runs/)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="instead of training.steps")
    parser.add_argument(
        "--plain", action="store_true", help="progress as lines, also on a terminal"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")


def run_train_demo(options: argparse.Namespace, console: Console) -> int:
    """Run the demo. Raises `ConfigError` before anything is started."""
    for module in ("torch", "matplotlib"):
        if find_spec(module) is None:
            raise ConfigError(f"train-demo needs {module}: pip install 'agentenv[torch]'")
    from agentenv.training.demo.config import DemoConfig  # noqa: PLC0415 - imports torch
    from agentenv.training.demo.run import Demo, DemoOptions  # noqa: PLC0415
    from agentenv.yaml_file import read_yaml  # noqa: PLC0415

    path = Path(options.config)
    config = read_yaml(path, DemoConfig)
    if options.steps is not None:
        if options.steps < 1:
            raise ConfigError(f"--steps {options.steps}: must be at least 1")
        training = config.training.model_copy(update={"steps": options.steps})
        config = config.model_copy(update={"training": training})
    maker = _Maker(path, config)
    chosen = DemoOptions(
        folder=Path(options.run_dir) if options.run_dir else _new_folder(),
        model=maker.initial_model(),
        plain=options.plain,
    )
    result = asyncio.run(_until_stopped(Demo(config, chosen, maker, console)))
    if result is None:
        console.print("stopped; give the same --run-dir to go on", markup=False)
        return INTERRUPTED
    return OK if result.reached else FAILED


async def _until_stopped(demo: Demo) -> DemoResult | None:
    found: list[DemoResult] = []

    async def work() -> None:
        found.append(await demo.run())

    stops = StopRequests()
    with stops.from_signals():
        await stops.run(work())
    return found[0] if found else None


class _Maker:
    """The demo's environment as settings make it, with whatever policy is to be measured."""

    def __init__(self, path: Path, config: DemoConfig) -> None:
        self._path = path
        self._config = config
        self._class = load_environment(config.environment)

    def __call__(self, model: str, env: dict[str, Any]) -> AgentEnv[Any]:
        """See `MakesEnvironments`."""
        settings = self._settings({**self._config.env, **env})
        servers = [
            server.model_copy(update={"server_type": "transformers", "model_name": model})
            for server in settings.servers[:1]
        ]
        return build_environment(self._class, replace(settings, servers=servers))

    def initial_model(self) -> str:
        """The model that the environment itself comes with. Raises `ConfigError` when it has none."""
        server = self._settings(self._config.env).servers[0]
        if server.server_type != "transformers" or not Path(server.model_name).is_dir():
            raise ConfigError(
                f"environment {self._config.environment!r} comes with no policy to train: its config_init must name "
                "the folder of a small model, with server_type 'transformers'"
            )
        return server.model_name

    def _settings(self, env: dict[str, Any]) -> Settings:
        file = ConfigFile(self._path, self._config.environment, {"env": env})
        return resolve(*self._class.config_init(), file=file, environ=os.environ, flags=[])


def _new_folder() -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"train-demo-{stamp}"
