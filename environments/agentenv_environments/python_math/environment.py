"""The environment: questions with one right answer, which an agent may work out with Python in its sandbox."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agentenv import AgentEnv, AgentEnvConfig, APIServerConfig
from agentenv_environments._json_lines import read_json_lines
from agentenv_environments.python_math.answers import answer_in, is_unevaluated, number_in
from agentenv_environments.python_math.arithmetic import Question, Split, make_question
from agentenv_environments.python_math.comparing import AnswerComparer
from agentenv_environments.python_math.python_tool import PythonTool
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from agentenv import AgentResult
    from agentenv.task import ExecTool
    from agentenv_tools.registry import ToolRegistry

_ASK = (
    "{question}\n\nUse the python tool where it helps. "
    "End with the answer, worked out, in \\boxed{{}}, or on a last line that begins with Answer:"
)


class PythonMathConfig(AgentEnvConfig):
    """Which questions, beside what every environment has."""

    questions: Path | None = None
    """JSON Lines file of `{"question": ..., "answer": ...}`, with an `id` where you like. The answer is a number or an
    expression in LaTeX. None: arithmetic that is made by seed."""
    split: Split = "train"
    """Of the arithmetic: `train`, or `held_out`."""
    first_question: int = Field(default=0, ge=0)
    """Index of the first question; the others follow. Arithmetic has no last one."""
    compare_cpu_s: float = Field(default=5.0, gt=0, le=600)
    """Seconds of processor time that comparing one answer may take; one that takes longer is wrong."""


class PythonMath(AgentEnv[PythonMathConfig]):
    """Arithmetic and mathematics with a Python tool; answers are compared by value, not by text."""

    name = "python_math"
    env_config_cls = PythonMathConfig

    @classmethod
    def config_init(cls) -> tuple[PythonMathConfig, list[APIServerConfig]]:
        """Generated arithmetic, the `python` tool alone, and a vLLM server of this machine."""
        config = PythonMathConfig(
            max_token_length=8192, agent_max_steps=8, enabled_toolsets=[], seed=0
        )
        return config, [APIServerConfig(server_type="vllm", base_url="http://localhost:8000/v1")]

    def build_tools(self) -> ToolRegistry:
        """`python`, and what is configured beside it."""
        tools = build_registry(self.config.enabled_toolsets, self.config.disabled_toolsets)
        tools.register(PythonTool())
        return tools

    async def setup_agent_env(self) -> None:
        """Read the questions. Raises `ConfigError` for a file that cannot be used, or without the extra `math`."""
        self._comparer = AnswerComparer(self.config.compare_cpu_s)
        self.next_question = self.config.first_question
        path = self.config.questions
        self._questions = None if path is None else await asyncio.to_thread(_read, path)

    async def cleanup(self) -> None:
        """End the process that compares."""
        await self._comparer.close()

    async def get_next_item(self) -> dict[str, str] | None:
        """The next question; None after the last one of a file."""
        index = self.next_question
        if self._questions is not None and index >= len(self._questions):
            return None
        self.next_question += 1
        if self._questions is not None:
            return asdict(self._questions[index])
        return asdict(make_question(self.config.split, index))

    def build_task(self, item: dict[str, str]) -> str:
        """The question, and how to answer."""
        return _ASK.format(question=item["question"])

    async def verify_and_score_trajectory(
        self,
        item: dict[str, str],
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: ExecTool,
        agent_result: AgentResult | None = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        """1.0 for the right answer, else 0.0; the metadata tells the answer that was found, and what is wrong."""
        answer = answer_in(final_response)
        wrong = "there is no answer" if answer is None else await self._wrong(item, answer)
        metadata = {"question": item["id"], "answer": answer and answer[:200], "wrong": wrong}
        return float(wrong is None), metadata

    async def score_trajectory(self, item: dict[str, str], final_response: str) -> float:
        """The score without the metadata."""
        answer = answer_in(final_response)
        return float(answer is not None and await self._wrong(item, answer) is None)

    def checkpoint_state(self) -> dict[str, Any]:
        """Which question comes next."""
        return {"next_question": self.next_question}

    async def _wrong(self, item: dict[str, str], answer: str) -> str | None:
        """What is wrong with an answer. Numbers written out are compared exactly, all else by math-verify."""
        expected, found = number_in(item["answer"]), number_in(answer)
        if expected is not None and found is not None:
            return None if expected == found else "another number"
        if expected is not None and is_unevaluated(answer):
            return "not worked out"
        if "=" in answer and "=" not in item["answer"]:
            name, _, answer = answer.partition("=")
            if not name.strip().replace("\\", "").isalpha() or "=" in answer:
                return "an equation where a value was asked for"
        compared = await self._comparer.compare(item["answer"], answer)
        return None if compared.equal else compared.problem or "another value"


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1, max_length=1000)
    id: str | None = None

    @field_validator("answer")
    @classmethod
    def _finite(cls, value: str) -> str:
        if value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise ValueError(f"{value!r} is no number")
        return value


def _read(path: Path) -> list[Question]:
    rows = read_json_lines(path, "env.questions", _Row)
    return [
        Question(row.id or f"{path.stem}-{number}", row.question, row.answer)
        for number, row in rows.items()
    ]
