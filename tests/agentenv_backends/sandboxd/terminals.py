"""Asking slots for their shells and terminals, in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentenv_backends.requests import ShellRequest, TmuxRequest
from agentenv_backends.results import ShellResult, TmuxResult

if TYPE_CHECKING:
    from tests.agentenv_backends.sandboxd.harness import RunningHost


UNTIL_SAID = "until [ -e said ]; do sleep 0.02; done"
"""A command that ends when a job of a shell has written this file: what the job wrote before is out by then."""


async def shell(
    host: RunningHost, command: str, timeout_s: float = 20, slot: str = "a", **more: Any
) -> ShellResult:
    result = await host.execute(ShellRequest(command, timeout_s, **more), slot)
    assert isinstance(result, ShellResult), result
    return result


async def output(host: RunningHost, command: str, timeout_s: float = 20) -> str:
    return (await shell(host, command, timeout_s)).stdout.text()


async def tmux(host: RunningHost, action: Any, *keys: str, **more: Any) -> TmuxResult:
    result = await host.execute(TmuxRequest(action, keys, **more))
    assert isinstance(result, TmuxResult), result
    return result


async def typed(host: RunningHost, *keys: str, timeout_s: float = 20, **more: Any) -> str:
    """The screen when the shell is back from what was typed."""
    result = await tmux(host, "send_keys", *keys, block=True, timeout_s=timeout_s, **more)
    assert not result.timed_out, result
    return result.screen
