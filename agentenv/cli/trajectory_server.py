"""`agentenv api`: the trajectory server, until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentenv.cli.commands import OK
from agentenv.cli.services import add_address, announcer, read_token

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from agentenv.api.settings import ApiSettings, Scope

_ENV_PREFIX = "TRAJECTORY_SERVER_"
_SWITCH_INTERVAL_S = 0.001
"""How long a thread that works on numbers keeps the interpreter from answering other requests."""
_REUSED_BYTES = 4 << 20
"""Buffers up to so large are used again, not given back to the system after each request."""

_HELP = """
Trainers and environments of the Atropos protocol work with it as they are. Everything acknowledged is in the database
named by --data, and survives a kill of the server; one that is started again with the same database goes on where the
last stopped. A power failure may take the last moments with it, unless every commit is synced.
Without --data the database is a temporary one: it is removed when the server is told to stop, and a server that was
killed starts empty.

    agentenv api --data runs/my-run                    # the trainer and the environments use http://127.0.0.1:8000

Environment variables, where the option is not given: TRAJECTORY_SERVER_HOST, TRAJECTORY_SERVER_PORT,
TRAJECTORY_SERVER_ALLOWED_HOSTS (by comma), and the tokens TRAJECTORY_SERVER_TRAINER_TOKEN, _ENVIRONMENT_TOKEN and
_READER_TOKEN. An address that others can reach needs tokens.
"""


def add_api_parser(chosen: Any) -> None:
    """The parser of `api`."""
    parser: argparse.ArgumentParser = chosen.add_parser(
        "api",
        help="serve the queue between environments and a trainer",
        description="The trajectory server: takes groups from environments, and gives batches to a trainer.",
        epilog=_HELP,
    )
    add_address(parser, 8000)
    parser.add_argument(
        "--data", type=Path, metavar="FILE_OR_DIR", help="the database (default: a temporary one)"
    )
    for scope in ("trainer", "environment", "reader"):
        parser.add_argument(
            f"--{scope}-token-file",
            metavar="FILE",
            help=f"file that holds the token of scope {scope}",
        )
    _add_limits(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    number: list[tuple[str, type, str, str]] = [
        ("--lease-s", float, "SECONDS", "how long a batch is its consumer's, and a pause lasts (600)"),
        ("--env-timeout-s", float, "SECONDS", "how long an environment may be silent and be waited for (60)"),
        ("--max-staleness", int, "STEPS", "drop groups whose policy is more steps older at hand-out (off)"),
        ("--max-queue-bytes", int, "N", "packed bytes of groups kept; then senders get 503 (16 GiB)"),
        ("--min-free-bytes", int, "N", "room on the disk that no new group may use (256 MiB)"),
        ("--max-body-bytes", int, "N", "of one request (256 MiB)"),
        ("--max-inflated-bytes", int, "N", "of one request, unpacked (1 GiB)"),
    ]  # fmt: skip
    for option, kind, metavar, text in number:
        parser.add_argument(option, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--sync-every-commit",
        action="store_true",
        help="answer only after the disk has it, which survives a power failure (default: soon after)",
    )
    parser.add_argument(
        "--accept-misaligned-advantages",
        action="store_true",
        help="take groups whose advantages have not one number a token",
    )


def run_api(options: argparse.Namespace, console: Console) -> int:
    """Serve until a signal."""
    from agentenv.api.server import DEFAULT_PORT, TrajectoryServer, serving_api  # noqa: PLC0415 - imports a server
    from agentenv_tools.serving.listening import run_until_stopped  # noqa: PLC0415
    from agentenv_tools.serving.settings import ServeSettings  # noqa: PLC0415

    api = _api_settings(options)
    port = options.port
    if port is None and not os.environ.get(f"{_ENV_PREFIX}PORT"):
        port = DEFAULT_PORT
    trainer_token = next(iter(api.tokens.values()), None)
    host = options.host or os.environ.get(f"{_ENV_PREFIX}HOST") or "127.0.0.1"
    api.check_address(host)
    address = ServeSettings.from_environment(
        _ENV_PREFIX,
        os.environ,
        host=host,
        port=port,
        token=trainer_token,
        allowed_hosts=tuple(options.allow_host) if options.allow_host else None,
        stop_grace_s=options.stop_grace_s,
    )
    server = TrajectoryServer(address, api)
    kept = f"data: {api.data}" if api.data else "nothing is kept after its end: no --data"
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _reuse_buffers()
    asyncio.run(run_until_stopped(serving_api(server), server, announcer(console, kept)))
    return OK


def _reuse_buffers() -> None:
    # glibc keeps what is freed up to twice the largest block it has seen go. Otherwise half a megabyte of JSON costs
    # two hundred page faults, a quarter of the time that reading it takes. Elsewhere this does nothing.
    bytes(_REUSED_BYTES)


def _api_settings(options: argparse.Namespace) -> ApiSettings:
    from agentenv.api.settings import ApiSettings  # noqa: PLC0415 - with the server

    given = {
        field.name: value
        for field in fields(ApiSettings)
        if (value := getattr(options, field.name, None)) is not None
    }
    return ApiSettings(**given, tokens=_tokens(options))


def _tokens(options: argparse.Namespace) -> dict[Scope, str]:
    from agentenv.api.settings import Scope  # noqa: PLC0415 - with the server

    found = {}
    for scope in Scope:
        option = f"--{scope.value}-token-file"
        token = read_token(option, getattr(options, f"{scope.value}_token_file"))
        token = token or os.environ.get(f"{_ENV_PREFIX}{scope.value.upper()}_TOKEN")
        if token:
            found[scope] = token
    return found
