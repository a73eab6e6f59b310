"""Questions answered rightly, wrongly and by cheats, in real sandboxes; and answers that are hard to compare."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentenv import ConfigError
from agentenv_environments.python_math.arithmetic import KINDS, make_question
from agentenv_environments.python_math.comparing import AnswerComparer, ComparisonError
from agentenv_environments.python_math.environment import PythonMath
from tests.agentenv_environments.scripted import call, scripted


def over(**settings: object) -> PythonMath:
    """The environment, for its hooks alone."""
    config, servers = PythonMath.config_init()
    return PythonMath(config.model_copy(update=settings), servers)


async def scores(path: Path | None, answers: list[str]) -> list[float]:
    """What each answer is worth to the only question of a file."""
    env = over(questions=path)
    await env.setup_agent_env()
    try:
        item = await env.get_next_item()
        assert item is not None
        return [await env.score_trajectory(item, answer) for answer in answers]
    finally:
        await env.cleanup()


def questions(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.sandbox
async def test_who_works_it_out_scores_one_and_who_does_not_scores_nothing():
    script: dict[str, list[str]] = {}
    for index in range(len(KINDS)):
        asked = make_question("train", index)
        script[f"solves-{index}"] = [
            call("python", code=f"print({asked.answer!r})"),
            f"\\boxed{{{asked.answer}}}",
        ]
        script[f"gives up-{index}"] = ["I cannot do this."]
        script[f"repeats-{index}"] = [f"\\boxed{{{asked.question}}}"]
        script[f"hedges-{index}"] = [f"\\boxed{{1, {asked.answer}}}"]
    async with scripted(PythonMath, script) as env:
        items = [await env.get_next_item() for _ in KINDS]
        runs = [
            env.runtime.run(
                env.task_for(items[int(name.rpartition("-")[2])]),
                env.verifier(),
                trajectory_id=name,
            )
            for name in script
        ]
        records = dict(zip(script, await asyncio.gather(*runs), strict=True))
    assert {name: record.cause for name, record in records.items() if record.cause} == {}
    assert {name: record.reward for name, record in records.items()} == {
        name: float(name.startswith("solves")) for name in script
    }
    first = records["solves-0"].result
    assert first is not None
    assert first.steps[0].tool_results[0].output.strip() == make_question("train", 0).answer


async def test_answers_are_compared_by_value(tmp_path):
    path = questions(tmp_path / "half.jsonl", {"question": "?", "answer": "\\frac{1}{2}"})
    right = ["\\boxed{1/2}", "\\boxed{0.5}", "Answer: $x = 0.5$", "\\boxed{\\frac12}"]
    wrong = ["\\boxed{2}", "\\boxed{3=0.5}", "\\boxed{x=3=0.5}", "\\boxed{nan}", "\\boxed{0.5, 1}"]
    assert await scores(path, right) == [1.0] * len(right)
    assert await scores(path, wrong) == [0.0] * len(wrong)
    path = questions(tmp_path / "square.jsonl", {"question": "?", "answer": "x^2+2x+1"})
    assert await scores(path, ["\\boxed{(x+1)^2}", "\\boxed{(x-1)^2}", "\\boxed{\\infty}"]) == [
        1,
        0,
        0,
    ]


@pytest.mark.slow
async def test_an_answer_that_takes_for_ever_is_wrong_and_hurts_no_other():
    comparer = AnswerComparer(cpu_s=1.0)
    try:
        for endless in ("9^{9^{9^{9}}}", "\\sum_{k=1}^{10^9} \\frac{1}{k^{1.5}}", "(" * 900):
            compared = await comparer.compare("x + 4", endless)
            assert not compared.equal
        assert (await comparer.compare("x + 4", "4 + x")).equal
        with pytest.raises(ComparisonError, match="no mathematical expression"):
            await comparer.compare("\\", "4")
    finally:
        await comparer.close()
        await comparer.close()


async def test_a_comparison_that_is_withdrawn_leaves_nothing_behind():
    comparer = AnswerComparer(cpu_s=60.0)
    waiting = asyncio.create_task(comparer.compare("x + 4", "9^{9^{9^{9}}}"))
    while comparer._process is None:
        await asyncio.sleep(0.01)
    process = comparer._process
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.returncode is not None
    await comparer.close()


async def test_lines_that_are_no_questions_are_told_with_their_numbers(tmp_path):
    path = questions(
        tmp_path / "bad.jsonl", {"question": "?"}, [], {"question": "?", "answer": "nan"}
    )
    with pytest.raises(
        ConfigError, match=r"(?s)bad.jsonl:1: .*bad.jsonl:2: .*bad.jsonl:3: .*no number"
    ):
        await scores(path, [])
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        await scores(tmp_path / "missing.jsonl", [])


async def test_a_file_ends_and_can_be_gone_on_with(tmp_path):
    rows = [{"question": "?", "answer": number, "id": f"q{number}"} for number in range(3)]
    path = questions(tmp_path / "three.jsonl", *rows)
    env = over(questions=path, first_question=1)
    await env.setup_agent_env()
    assert (await env.get_next_item() or {})["id"] == "q1"
    state = env.checkpoint_state()
    assert (await env.get_next_item() or {})["id"] == "q2"
    assert await env.get_next_item() is None
    env.restore_state(state)
    assert (await env.get_next_item() or {})["id"] == "q2"
    await env.cleanup()


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from agentenv_environments.python_math.comparing import AnswerComparer; AnswerComparer(1.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "agentenv[math]" in done.stderr
