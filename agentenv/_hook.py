"""Running an environment's own code: within a deadline, with every failure told apart."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from agentenv.errors import PolicyError, VerifierError
from agentenv_backends.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from agentenv.rollout import Workbench
    from agentenv.task import ExecTool
    from agentenv_tools.schema import ToolCall, ToolResult

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_reported: set[str] = set()


async def run_hook(
    what: str, work: Callable[[ExecTool], Awaitable[_T]], workbench: Workbench, timeout_s: float
) -> _T:
    """Await one of the environment's hooks within its deadline, from which waiting for a slot is left out.

    Only infrastructure's errors keep their class; anything else the environment's code raises is `VerifierError`.
    A hook that catches infrastructure's error and answers all the same has judged nothing: the error is raised.
    """
    failures: list[InfrastructureError] = []
    try:
        async with asyncio.timeout(timeout_s) as deadline:

            async def exec_tool(call: ToolCall) -> ToolResult:
                try:
                    with _paused(deadline):
                        await workbench.ready(call)
                    return await workbench.call(call, limit_s=None)
                except InfrastructureError as error:
                    failures.append(error)
                    raise

            done = await work(exec_tool)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody withdrew this rollout: the hook awaited something of its own that was cancelled.
        raise VerifierError(f"{what} awaited something that was cancelled") from error
    except (InfrastructureError, PolicyError, VerifierError):
        raise
    except Exception as error:  # the environment's own code may raise anything
        if isinstance(error, TimeoutError) and deadline.expired():
            raise VerifierError(
                f"{what} did not end within verify_timeout_s={timeout_s:g}"
            ) from error
        if failures:
            raise failures[0] from error
        _report_once(what, error)
        raise VerifierError(f"{what} raised {describe(error)}") from error
    if failures:
        raise failures[0]
    return done


def describe(error: BaseException) -> str:
    """The error's class and message, cut where it is long."""
    return f"{type(error).__name__}: {error}"[:2000]


def _report_once(what: str, error: Exception) -> None:
    """Show where the environment's code raised, once for each kind of fault: a bug may hit every rollout of a run."""
    kind = f"{what}: {type(error).__name__} at {_origin(error)}"
    level = logging.DEBUG if kind in _reported else logging.WARNING
    _reported.add(kind)
    logger.log(level, "%s raised; later ones like it are only counted", what, exc_info=error)


def _origin(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"


@contextmanager
def _paused(deadline: asyncio.Timeout) -> Iterator[None]:
    """Stop a deadline's clock; nested and concurrent pauses count once."""
    when = deadline.when()
    if when is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = when - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        if not deadline.expired():
            deadline.reschedule(loop.time() + left)
