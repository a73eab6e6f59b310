"""Comparing answers in another process, which may die of it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentenv import ConfigError

_WORKER = Path(__file__).with_name("worker.py")
_START_S = 120.0
_WAITED_S = 120.0


class ComparisonError(Exception):
    """An answer could not be compared, and not because of what it says: there is no score."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether an answer is equal to the expected one; `problem` says why it could not be found out."""

    equal: bool
    problem: str | None = None


class AnswerComparer:
    """`math-verify` in a process that is started when it is first needed, and anew whenever an answer was its end.

    An answer that takes more than `cpu_s` seconds of processor time, or more memory than there is, is not equal. Time
    is that of the processor, so that a busy machine changes no score. One comparison runs at a time.
    """

    def __init__(self, cpu_s: float) -> None:
        """Raises `ConfigError` when the extra is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "python_math needs math-verify to compare answers; install it with: pip install 'agentenv[math]'"
            )
        self._cpu_s = cpu_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def compare(self, gold: str, answer: str) -> Comparison:
        """Raises `ComparisonError` when the expected answer makes no sense, or the machine gave it no time."""
        async with self._turn:
            try:
                said = await self._ask({"gold": gold, "answer": answer, "cpu_s": self._cpu_s})
            except BaseException:
                await (
                    self._end()
                )  # a process whose answer nobody read must not answer the next question
                raise
            if said is None:
                await self._end()
                return Comparison(
                    equal=False,
                    problem=f"the answer could not be compared within {self._cpu_s:g} s and the memory given",
                )
        if "problem" in said:
            raise ComparisonError(f"expected answer {gold[:80]!r}: {said['problem']}")
        return Comparison(equal=said["equal"])

    async def close(self) -> None:
        """End the process. Idempotent."""
        async with self._turn:
            await self._end()

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """What the process says; None when it died of the question."""
        process = self._process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._cpu_s + _WAITED_S):
                with suppress(ConnectionError):  # it died: reading says so too
                    process.stdin.write(json.dumps(question).encode() + b"\n")
                    await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise ComparisonError(
                f"comparing an answer waited more than {_WAITED_S:g} s for a processor"
            ) from error
        return json.loads(line) if line.endswith(b"\n") else None

    async def _start(self) -> asyncio.subprocess.Process:
        """A process that has imported all it needs: what that costs is nobody's answer's fault."""
        environment = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(_WORKER)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
        self._process = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                ready = await process.stdout.readline()
        except TimeoutError as error:
            raise ComparisonError(f"math-verify was not ready within {_START_S:g} s") from error
        if not ready:
            raise ComparisonError(f"math-verify could not be started: {sys.executable} {_WORKER}")
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.shield(process.wait())
