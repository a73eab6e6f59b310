"""Running the checks, one after another, each with its own outcome."""

from __future__ import annotations

import asyncio
import importlib
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentenv_backends.config import parse_backend_config
from agentenv_backends.conformance.checks import CHECKS, Subject, Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentenv_backends.base import Backend
    from agentenv_backends.conformance.checks import Check

CHECK_TIMEOUT_S = 180.0
"""A check that takes longer has found a call that hangs."""
BUILT_IN = "agentenv_backends.conformance:backend_from_config"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended."""

    check: Check
    status: Literal["holds", "broken", "not offered"]
    detail: str = ""
    """What was seen, or which capability is not declared."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes, in the order of the checks."""

    outcomes: tuple[Outcome, ...]

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """Promises the backend does not keep."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "broken")

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing is broken."""
        return bool(self.outcomes) and not self.broken

    def text(self) -> str:
        """One line an outcome, and a last one with the counts."""
        lines = [_line(outcome) for outcome in self.outcomes]
        counts = {
            status: sum(outcome.status == status for outcome in self.outcomes)
            for status in ("holds", "broken", "not offered")
        }
        lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
        return "\n".join(lines)


def backend_from_config(**values: Any) -> Backend:
    """A factory for this package's own backends: `values` are a backend config."""
    return parse_backend_config(values).build()


def load_factory(factory: str) -> Callable[..., Backend]:
    """The function that `module:function` names. Raises `ValueError` when there is none."""
    module, _, name = factory.partition(":")
    try:
        found: Callable[..., Backend] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"factory {factory!r} is not module:function: {error}") from error
    return found


async def run_checks(
    factory: str = BUILT_IN,
    arguments: dict[str, Any] | None = None,
    *,
    checks: Sequence[Check] = (),
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Run `checks` (all of them when empty) against backends of that factory; `tell` hears each outcome at once.

    Checks that share a backend get the same one, started once. Raises what its `start` raises.
    """
    make, given = load_factory(factory), dict(arguments or {})
    backend = make(**given)
    subject = Subject(backend, factory, given, lambda: make(**given))
    outcomes = []
    await backend.start()
    try:
        for check in checks or CHECKS:
            outcomes.append(await run_check(check, subject))
            tell(outcomes[-1])
    finally:
        await backend.stop()
    return Report(tuple(outcomes))


async def run_check(check: Check, subject: Subject) -> Outcome:
    """Run one check against a started backend. Its failure is its outcome, never an exception."""
    missing = [name for name in check.needs if not getattr(subject.backend.capabilities, name)]
    if missing:
        return Outcome(check, "not offered", f"not declared: {', '.join(missing)}")
    started = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await check.run(subject)
    except Violation as violation:
        return Outcome(check, "broken", str(violation), time.monotonic() - started)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        return Outcome(check, "broken", detail, time.monotonic() - started)
    return Outcome(check, "holds", "", time.monotonic() - started)


def _line(outcome: Outcome) -> str:
    detail = f": {outcome.detail}" if outcome.detail else ""
    return f"{outcome.status:>11}  {outcome.check.group}: {outcome.check.name}{detail}"
