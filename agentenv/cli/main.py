"""The command line: `agentenv process CONFIG.yaml`, `agentenv doctor`, ..., and `MyEnv.cli()` for one environment.

Exit status: 0 done, 1 failed on the way, 2 refused before anything started, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from agentenv.cli import commands
from agentenv.cli.cleanup import add_cleanup_parser, run_cleanup
from agentenv.cli.doctor import run_doctor
from agentenv.cli.environments import load_environment, registered_names
from agentenv.cli.help import settings_help
from agentenv.cli.layers import ConfigFile, load_config_file, split_flags
from agentenv.cli.logs import configure_logging
from agentenv.cli.run import add_run_parsers, run_batch, run_run
from agentenv.cli.services import (
    ToolsOnly,
    add_executor_options,
    add_tool_server_parser,
    run_executor,
    run_tool_server,
)
from agentenv.cli.settings import Settings, resolve, setting_trees
from agentenv.cli.sweeps import (
    add_sweep_options,
    add_sweep_parsers,
    is_sweep_file,
    refuse_sweep_options,
    run_compare,
    run_export,
    run_sweep_command,
    run_sweep_report,
)
from agentenv.cli.tasks import add_tasks_parser, run_tasks_check
from agentenv.cli.train_demo import add_train_demo_parser, run_train_demo
from agentenv.cli.trajectory import add_trajectory_parser, run_trajectory
from agentenv.cli.trajectory_server import add_api_parser, run_api
from agentenv.cli.watch import add_watch_option
from agentenv.errors import AgentEnvError, ConfigError
from agentenv.naming import nearest
from agentenv.run.panels import printable
from agentenv_backends.errors import BackendConfigError, BackendError
from agentenv_tools.errors import ToolConfigError, ToolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentenv.env import AgentEnv

_RUNS = {
    "process": "collect scored groups into a run directory",
    "evaluate": "run the environment's own evaluation and print its metrics",
    "serve": "feed a trainer with scored groups through its trajectory server",
    "executor": "serve the tools and sandboxes to agents in other processes",
}
_OTHERS = {
    "api": run_api,
    "batch": run_batch,
    "compare": run_compare,
    "export": run_export,
    "report": run_sweep_report,
    "run": run_run,
    "train-demo": run_train_demo,
    "tasks": run_tasks_check,
    "tool-server": run_tool_server,
    "trajectory": run_trajectory,
}
"""Commands that take their options and a console, and no settings."""
_RUN_DIR_HELP = {
    "process": "where to write (default: a new one below runs/)",
    "serve": "what must outlive this process; name the same one again to go on (default: a new one below runs/)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `agentenv` command. Returns its exit status."""
    return _run(_agentenv_parser(), None, argv)


def run_cli(env_class: type[AgentEnv[Any]], argv: Sequence[str] | None = None) -> int:
    """The command line of one environment, behind `AgentEnv.cli()`. Returns its exit status."""
    return _run(_environment_parser(env_class), env_class, argv)


def _run(
    parser: argparse.ArgumentParser,
    env_class: type[AgentEnv[Any]] | None,
    argv: Sequence[str] | None,
) -> int:
    own, flags = split_flags(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, highlight=False)
    try:
        options = _parse(parser, own)
        configure_logging(errors, verbose=options.verbose)
        return _dispatch(options, env_class, flags)
    except (ConfigError, BackendConfigError, ToolConfigError) as error:
        return _fail(errors, error, commands.REFUSED)
    except (AgentEnvError, BackendError, ToolError) as error:
        return _fail(errors, error, commands.FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("interrupted")
        return commands.INTERRUPTED


def _fail(errors: Console, error: Exception, status: int) -> int:
    message = "\n".join(printable(line) for line in str(error).splitlines())
    errors.print(f"error: {message}", markup=False, soft_wrap=True)
    return status


def _dispatch(
    options: argparse.Namespace, env_class: type[AgentEnv[Any]] | None, flags: list[str]
) -> int:
    console = Console()
    if options.command in _RUNS:
        return _run_environment(options, env_class, flags, console)
    if flags:
        raise ConfigError(f"{options.command} takes no settings, but {flags[0]} was given")
    if options.command == "doctor":
        return run_doctor(console)
    if options.command == "cleanup":
        return run_cleanup(options, console)
    return _OTHERS[options.command](options, console)


def _run_environment(
    options: argparse.Namespace,
    env_class: type[AgentEnv[Any]] | None,
    flags: list[str],
    console: Console,
) -> int:
    if options.command == "evaluate" and options.config:
        if env_class is None and is_sweep_file(Path(options.config)):
            if options.help:
                return _help(options, None, None, console)
            return run_sweep_command(options, flags, console)
        refuse_sweep_options(options)
    file = load_config_file(Path(options.config)) if options.config else None
    if options.help:
        return _help(options, env_class, file, console)
    env_class = env_class or _environment_for(options.command, file)
    _check_same(env_class, file)
    settings = _settings(env_class, file, flags)
    if options.command == "executor":
        return run_executor(env_class, settings, options, console)
    if options.command == "evaluate":
        return commands.run_evaluate(env_class, settings, console)
    chosen = commands.ProcessOptions(
        run_dir=Path(options.run_dir) if options.run_dir else None,
        report=options.command == "process" and not options.no_report,
        plain=options.plain,
        watch=options.command == "process" and options.watch,
    )
    if options.command == "serve":
        return commands.run_serve(env_class, settings, chosen, console)
    return commands.run_process(env_class, settings, chosen, console)


def _settings(
    env_class: type[AgentEnv[Any]], file: ConfigFile | None, flags: list[str]
) -> Settings:
    env, servers = env_class.config_init()
    return resolve(env, servers, file=file, environ=os.environ, flags=flags)


def _environment_for(command: str, file: ConfigFile | None) -> type[AgentEnv[Any]]:
    """Tools can be served without tasks to use them for."""
    if command == "executor" and (file is None or file.environment is None):
        return ToolsOnly
    return _environment_of(file)


def _environment_of(file: ConfigFile | None) -> type[AgentEnv[Any]]:
    known = ", ".join(registered_names())
    if file is None:
        raise ConfigError(
            f"a configuration file is needed: it names the environment (known short names: {known})"
        )
    if file.environment is None:
        raise ConfigError(
            f"{file.path} has no `environment: package.module:Class` (known short names: {known})"
        )
    return load_environment(file.environment)


def _check_same(env_class: type[AgentEnv[Any]], file: ConfigFile | None) -> None:
    """A file that names another class was written for another environment."""
    if file is None or file.environment is None or ":" not in file.environment:
        return
    named = file.environment.rpartition(":")[2]
    if named != env_class.__name__:
        raise ConfigError(
            f"{file.path} is for environment {file.environment}, not for {env_class.__name__}"
        )


def _help(
    options: argparse.Namespace,
    env_class: type[AgentEnv[Any]] | None,
    file: ConfigFile | None,
    console: Console,
) -> int:
    from agentenv.env import AgentEnv  # noqa: PLC0415 - an import at the top would be a circle

    console.print(options.parser.format_help(), markup=False, highlight=False)
    if env_class is None and file is not None:
        env_class = _environment_of(file)
    env, servers = (env_class or AgentEnv).config_init()
    if env_class is None:
        console.print(
            "Settings of every environment; with CONFIG, those of its own are shown too.\n"
        )
    for section in settings_help(setting_trees(env, servers)):
        console.print(section, soft_wrap=False)
    return commands.OK


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the interpreter, and takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parse(parser: argparse.ArgumentParser, own: list[str]) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(own)
    if unknown:
        raise ConfigError(
            f"unknown: {' '.join(unknown)}{_suggestion(unknown[0])} (see {parser.prog} --help)"
        )
    return options


def _suggestion(word: str) -> str:
    """Settings need their section; a name alone is the commonest slip."""
    from agentenv.env import AgentEnv  # noqa: PLC0415 - an import at the top would be a circle

    name = word.removeprefix("--").partition("=")[0].replace("-", "_").rpartition(".")[2]
    known = {
        leaf.rpartition(".")[2]: leaf
        for section, tree in reversed(setting_trees(*AgentEnv.config_init()).items())
        for leaf, _ in tree.leaves(section)
    }
    if name in known:
        return f"; did you mean --{known[name]}?"
    return nearest(word, [f"--{leaf}" for leaf in known.values()])


def _agentenv_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="agentenv", description="RL training environments for LLM agents that use tools."
    )
    parser.add_argument("--version", action="version", version=f"agentenv {_version()}")
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _RUNS.items():
        run = _run_parser(chosen, name, text)
        run.add_argument(
            "config", nargs="?", metavar="CONFIG.yaml", help="settings, and which `environment:`"
        )
    doctor = chosen.add_parser(
        "doctor", help="try which protections of sandboxes are in force on this machine"
    )
    add_train_demo_parser(chosen)
    add_tool_server_parser(chosen)
    add_api_parser(chosen)
    others = (
        *add_run_parsers(chosen),
        add_cleanup_parser(chosen),
        *add_tasks_parser(chosen),
        *add_trajectory_parser(chosen),
        *add_sweep_parsers(chosen),
    )
    for other in (doctor, *others):
        _verbose(other)
    return parser


def _version() -> str:
    try:
        return version("agentenv")
    except PackageNotFoundError:
        return "(not installed: run from its sources)"


def _environment_parser(env_class: type[AgentEnv[Any]]) -> argparse.ArgumentParser:
    doc = (env_class.__doc__ or "").strip().partition("\n")[0]
    parser = _Parser(prog=Path(sys.argv[0]).name, description=f"{env_class.__name__}: {doc}")
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _RUNS.items():
        run = _run_parser(chosen, name, text)
        run.add_argument("--config", metavar="FILE", help="YAML file with settings")
    return parser


def _run_parser(chosen: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = chosen.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", add_help=False
    )
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this help, with every setting"
    )
    _verbose(parser)
    if name == "executor":
        add_executor_options(parser)
    if name in ("process", "serve"):
        parser.add_argument("--run-dir", metavar="DIR", help=_RUN_DIR_HELP[name])
        parser.add_argument(
            "--plain", action="store_true", help="progress as lines, also on a terminal"
        )
    if name == "evaluate":
        add_sweep_options(parser)
    if name == "process":
        add_watch_option(parser)
        parser.add_argument("--no-report", action="store_true", help="write no report.html")
    return parser


def _verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")


if __name__ == "__main__":
    raise SystemExit(main())
