"""A check, what it is given, and how it says that a promise was broken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from agentenv_backends.requests import DEFAULT_MAX_OUTPUT_BYTES, ExecRequest
from agentenv_backends.results import ExecResult, OpFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from agentenv_backends.base import Backend, Slot
    from agentenv_backends.requests import Request
    from agentenv_backends.results import FailureKind, Result

    CheckFunction = Callable[["Subject"], Awaitable[None]]

ResultT = TypeVar("ResultT")


class Violation(Exception):  # noqa: N818 - a finding, caught by whoever runs the checks
    """The backend does not do what the contract says."""


def hold(condition: object, sentence: str) -> None:
    """Raise `Violation` unless the condition holds; the sentence says what was seen."""
    if not condition:
        raise Violation(sentence)


def expect(kind: type[ResultT], result: Result) -> ResultT:
    """The result, as the kind it must be."""
    if not isinstance(result, kind):
        raise Violation(f"expected {kind.__name__}, got {result}")
    return result


def refused(result: Result, *kinds: FailureKind) -> None:
    """The request must have been refused, for one of these reasons."""
    failure = expect(OpFailure, result)
    hold(failure.kind in kinds, f"refused as {failure.kind}, expected one of {kinds}")
    hold(failure.message, f"the refusal {failure.kind} has no message")


@dataclass(frozen=True, slots=True)
class Check:
    """One promise of the contract."""

    name: str
    """A sentence: what holds."""
    group: str
    run: CheckFunction
    needs: tuple[str, ...] = ()
    """Capabilities (fields of `Capabilities`) without which there is nothing to check."""
    own_backend: bool = False
    """It starts and ends backends of its own, and is given one that is not started."""


CHECKS: list[Check] = []
"""All of them, in the order of their groups."""


def check(
    group: str, *, needs: tuple[str, ...] = (), own_backend: bool = False
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check; its name is the function's, in words."""

    def register(function: CheckFunction) -> CheckFunction:
        name = getattr(function, "__name__", "").replace("_", " ")
        CHECKS.append(Check(name, group, function, needs, own_backend))
        return function

    return register


@dataclass(frozen=True, slots=True)
class Subject:
    """The backend under check."""

    backend: Backend
    factory: str
    """`module:function`, which gives further backends of the same kind, also in another process."""
    arguments: dict[str, Any]
    make: Callable[[], Backend]
    """The factory, called with its arguments."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """A slot for the time of a block."""
        slot = await self.backend.acquire(f"conformance-{next(self._numbers)}", timeout_s=120)
        try:
            yield slot
        finally:
            await asyncio.shield(self.backend.release(slot))

    async def ask(self, slot: Slot, request: Request) -> Result:
        """Carry a request."""
        return await self.backend.execute(slot, request)

    async def run(
        self,
        slot: Slot,
        command: str | Sequence[str],
        *,
        timeout_s: float = 30.0,
        stdin: bytes = b"",
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
        **options: Any,
    ) -> ExecResult:
        """Run a command."""
        request = ExecRequest(
            command, timeout_s, stdin=stdin, max_output_bytes=max_output_bytes, **options
        )
        return expect(ExecResult, await self.ask(slot, request))

    async def output(self, slot: Slot, command: str | Sequence[str], **options: Any) -> str:
        """The standard output of a command that must succeed."""
        result = await self.run(slot, command, **options)
        hold(result.exit_code == 0, f"`{command[:80]}` failed: {said(result)}")
        return result.stdout.text()


def said(result: ExecResult) -> str:
    """A command's end, for a sentence."""
    text = (result.stdout.text() + result.stderr.text())[-300:]
    return f"{result.status.value}, exit code {result.exit_code}: {text!r}"
