import json
from collections.abc import Callable
from typing import Any

import pytest

from agentenv.atif import errors, validate
from agentenv.atif.versions import VERSIONS
from tests.agentenv.atif.goldens import GOLDEN, MINORS, broken, golden

Change = Callable[[dict[str, Any]], Any]


def messages(data: object, **options: Any) -> dict[str, str]:
    return {problem.path: problem.message for problem in errors(validate(data, **options))}


def warnings(data: object) -> dict[str, str]:
    return {p.path: p.message for p in validate(data) if p.severity == "warning"}


@pytest.mark.parametrize("minor", MINORS)
def test_a_file_of_each_version_is_valid_by_its_own_rules(minor: int):
    assert validate(golden(minor), strict=True, base_dir=GOLDEN) == []


@pytest.mark.parametrize("minor", range(1, 9))
def test_what_a_version_brought_is_refused_in_the_one_before_and_only_when_strict(minor: int):
    def relabel(data: dict[str, Any]) -> None:
        data["schema_version"] = VERSIONS[minor - 1]
        for inner in data.get("subagent_trajectories", []):
            inner["schema_version"] = VERSIONS[minor - 1]
        if minor == 7:
            data["session_id"] = "run-7"  # or its absence alone would be what is refused

    older = broken(minor, relabel)
    assert errors(validate(older, strict=True))
    lenient = messages(older)
    assert set(lenient) <= {p for p in lenient if "subagent_trajectory_ref" in p}


STEP, CALL = "trajectory.steps.2", "trajectory.steps.2.tool_calls.0"
RESULT = "trajectory.steps.2.observation.results.0"


def part(content: Any) -> Change:
    return lambda d: d["steps"][1].update(message=[content])


@pytest.mark.parametrize(
    ("change", "path"),
    [
        pytest.param(
            lambda d: d.pop("agent"), "trajectory.agent", id="a required field is missing"
        ),
        pytest.param(
            lambda d: d["agent"].pop("name"), "trajectory.agent.name", id="the agent has no name"
        ),
        pytest.param(lambda d: d.update(mood="good"), "trajectory.mood", id="an unknown key"),
        pytest.param(
            lambda d: d["steps"][2]["tool_calls"][0].update(why=1),
            f"{CALL}.why",
            id="an unknown key deep down",
        ),
        pytest.param(
            lambda d: d.update(schema_version="ATIF-v2.0"),
            "trajectory.schema_version",
            id="an unknown version",
        ),
        pytest.param(lambda d: d.update(steps=[]), "trajectory.steps", id="no step"),
        pytest.param(
            lambda d: d["steps"][0].update(source="tool"),
            "trajectory.steps.0.source",
            id="an unknown source",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(message=None),
            "trajectory.steps.0.message",
            id="a message that is null",
        ),
        pytest.param(
            lambda d: d["steps"][2]["tool_calls"][0].update(arguments="{}"),
            f"{CALL}.arguments",
            id="arguments as text",
        ),
        pytest.param(
            lambda d: d["steps"][2]["metrics"].update(logprobs=[None]),
            f"{STEP}.metrics.logprobs.0",
            id="a log-prob that is null",
        ),
        pytest.param(
            lambda d: d["steps"][2]["metrics"].update(logprobs=[float("inf")] * 3),
            f"{STEP}.metrics.logprobs.0",
            id="an infinite log-prob",
        ),
        pytest.param(
            lambda d: d["steps"][1].update(step_id=3),
            "trajectory.steps.1.step_id",
            id="steps out of order",
        ),
        pytest.param(
            lambda d: d["steps"].pop(0),
            "trajectory.steps.0.step_id",
            id="steps that do not begin with 1",
        ),
        pytest.param(
            lambda d: d["steps"][1].update(tool_calls=[]),
            "trajectory.steps.1.tool_calls",
            id="calls of a user",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(metrics={}),
            "trajectory.steps.0.metrics",
            id="metrics of the system",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(reasoning_content="hm"),
            "trajectory.steps.0.reasoning_content",
            id="reasoning of the system",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(model_name="m"),
            "trajectory.steps.0.model_name",
            id="a model of the system",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(reasoning_effort=1),
            "trajectory.steps.0.reasoning_effort",
            id="an effort of the system",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(timestamp="yesterday"),
            "trajectory.steps.0.timestamp",
            id="a date that is none",
        ),
        pytest.param(
            lambda d: d["steps"][0].update(timestamp="1700000000"),
            "trajectory.steps.0.timestamp",
            id="seconds since the epoch",
        ),
        pytest.param(
            lambda d: d["steps"][3].update(llm_call_count=0),
            "trajectory.steps.3.metrics",
            id="metrics of no model call",
        ),
        pytest.param(
            lambda d: (d["steps"][2].update(llm_call_count=0), d["steps"][2].pop("metrics")),
            f"{STEP}.reasoning_content",
            id="reasoning of no model call",
        ),
        pytest.param(
            lambda d: d["steps"][3].update(llm_call_count=-1),
            "trajectory.steps.3.llm_call_count",
            id="less than no model call",
        ),
        pytest.param(
            lambda d: d["steps"][2]["observation"]["results"][0].update(source_call_id="c9"),
            f"{RESULT}.source_call_id",
            id="a result of no call",
        ),
        pytest.param(
            lambda d: d["steps"][3].update(observation={"results": [{"source_call_id": "c1"}]}),
            "trajectory.steps.3.observation.results.0.source_call_id",
            id="a result of another step's call",
        ),
        pytest.param(
            part({"type": "text"}),
            "trajectory.steps.1.message.0.text",
            id="a text part without text",
        ),
        pytest.param(
            part(
                {"type": "text", "text": "", "source": {"media_type": "image/png", "path": "x://y"}}
            ),
            "trajectory.steps.1.message.0.source",
            id="a text part with a source",
        ),
        pytest.param(
            part({"type": "image"}),
            "trajectory.steps.1.message.0.source",
            id="an image without source",
        ),
        pytest.param(
            part(
                {
                    "type": "image",
                    "text": "a",
                    "source": {"media_type": "image/png", "path": "x://y"},
                }
            ),
            "trajectory.steps.1.message.0.text",
            id="an image with text",
        ),
        pytest.param(
            part({"type": "audio", "source": {"media_type": "image/png", "path": "x://y"}}),
            "trajectory.steps.1.message.0.source.media_type",
            id="an image under type audio",
        ),
        pytest.param(
            part({"type": "image", "source": {"media_type": "image/svg+xml", "path": "x://y"}}),
            "trajectory.steps.1.message.0.source.media_type",
            id="a format that is not allowed",
        ),
        pytest.param(
            lambda d: d["steps"][2]["observation"]["results"][0].update(
                subagent_trajectory_ref=[{"session_id": "s"}]
            ),
            f"{RESULT}.subagent_trajectory_ref.0",
            id="a reference by session alone",
        ),
        pytest.param(
            lambda d: d["subagent_trajectories"][0].pop("trajectory_id"),
            "trajectory.subagent_trajectories.0.trajectory_id",
            id="an embedded trajectory without id",
        ),
        pytest.param(
            lambda d: d["subagent_trajectories"].append(d["subagent_trajectories"][0]),
            "trajectory.subagent_trajectories.1.trajectory_id",
            id="embedded trajectories of one id",
        ),
        pytest.param(
            lambda d: d["subagent_trajectories"][0]["steps"][1].update(step_id=7),
            "trajectory.subagent_trajectories.0.steps.1.step_id",
            id="an embedded trajectory that is not valid",
        ),
        pytest.param(
            lambda d: d["steps"][1]["message"][1]["source"].update(path="images/gone.png"),
            "trajectory.steps.1.message.1.source.path",
            id="an image that is not there",
        ),
        pytest.param(
            lambda d: d["subagent_trajectories"][0]["steps"][0].update(
                message=[{"type": "image", "source": {"media_type": "image/png", "path": "a\0b"}}]
            ),
            "trajectory.subagent_trajectories.0.steps.0.message.0.source.path",
            id="an embedded trajectory's image that no file can be",
        ),
    ],
)
def test_each_rule_names_the_place_where_it_is_broken(change: Change, path: str):
    assert path in messages(broken(8, change), base_dir=GOLDEN)


@pytest.mark.parametrize(
    ("minor", "change", "path"),
    [
        pytest.param(
            3,
            lambda d: d.pop("session_id"),
            "trajectory.session_id",
            id="a session is needed until 1.6",
        ),
        pytest.param(
            8,
            lambda d: d.pop("schema_version"),
            "trajectory.schema_version",
            id="a version is needed",
        ),
        pytest.param(
            8,
            lambda d: d["steps"][0].update(step_id="1"),
            "trajectory.steps.0.step_id",
            id="a number as text",
        ),
        pytest.param(
            8,
            lambda d: d["steps"][0].update(step_id=True),
            "trajectory.steps.0.step_id",
            id="true as a number",
        ),
        pytest.param(
            8,
            lambda d: d["steps"][1].update(observation={"results": []}),
            "trajectory.steps.1.observation",
            id="an observation of a user",
        ),
        pytest.param(
            5,
            lambda d: d["steps"][2]["observation"]["results"][0].update(
                subagent_trajectory_ref=[{"trajectory_path": "a.json"}]
            ),
            f"{RESULT}.subagent_trajectory_ref.0.session_id",
            id="a reference needs a session until 1.6",
        ),
    ],
)
def test_what_readers_let_pass_is_refused_when_strict(minor: int, change: Change, path: str):
    data = broken(minor, change)
    assert messages(data) == {}
    assert path in messages(data, strict=True)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (
            lambda d: d["steps"][2]["tool_calls"].append(d["steps"][2]["tool_calls"][0]),
            f"{STEP}.tool_calls",
        ),
        (lambda d: d["steps"][2]["metrics"].update(logprobs=[-1.0]), f"{STEP}.metrics.logprobs"),
        (
            lambda d: d["steps"][2]["metrics"].update(completion_tokens=9),
            f"{STEP}.metrics.completion_token_ids",
        ),
        (
            lambda d: d["steps"][2]["metrics"].update(prompt_tokens=9),
            f"{STEP}.metrics.prompt_token_ids",
        ),
        (
            lambda d: d["steps"][2]["metrics"].update(cached_tokens=9),
            f"{STEP}.metrics.cached_tokens",
        ),
        (lambda d: d["steps"][2]["metrics"].update(cost_usd=-1), f"{STEP}.metrics.cost_usd"),
        (
            lambda d: d.pop("subagent_trajectories"),
            f"{RESULT}.subagent_trajectory_ref.0.trajectory_id",
        ),
        (lambda d: (d.pop("notes"), d["steps"].pop()), "trajectory.final_metrics.total_steps"),
    ],
)
def test_what_is_odd_but_allowed_is_a_warning(change: Change, path: str):
    data = broken(8, change)
    assert errors(validate(data)) == []
    assert path in warnings(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=None),
        lambda d: d["steps"][1].update(observation={"results": []}),
        lambda d: d["steps"][1].update(message=[]),
        lambda d: d["steps"][0].update(timestamp="2026-01-05"),
        lambda d: d["steps"][0].update(timestamp="2026-W02-1T10:00:00+02:00"),
        lambda d: d["steps"][1]["message"][2]["source"].update(media_type=" Audio/X-Wav "),
        lambda d: (
            d["steps"][2].update(llm_call_count=0),
            d["steps"][2].pop("metrics"),
            d["steps"][2].pop("reasoning_content"),
        ),
    ],
)
def test_what_the_format_allows_is_no_problem(change: Change):
    assert validate(broken(8, change)) == []


def test_all_problems_are_found_at_once():
    def change(data: dict[str, Any]) -> None:
        data["agent"].pop("version")
        data["steps"][0]["step_id"] = 5
        data["steps"][2]["observation"]["results"][0]["source_call_id"] = "no"
        data["colour"] = "red"

    assert {
        "trajectory.agent.version",
        "trajectory.steps.0.step_id",
        f"{RESULT}.source_call_id",
        "trajectory.colour",
    } <= set(messages(broken(8, change)))


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "x",
        [],
        {},
        {"steps": 3},
        {"steps": [None, 3, {"observation": {"results": [None]}}]},
        {"agent": [], "steps": {"a": 1}, "subagent_trajectories": [1, {"trajectory_id": []}]},
        {
            "steps": [
                {
                    "tool_calls": [{"tool_call_id": {}}],
                    "metrics": {"logprobs": 1},
                    "message": [{"type": []}],
                }
            ]
        },
    ],
)
def test_anything_can_be_validated(data: object):
    assert errors(validate(data))
    assert errors(validate(data, strict=True, base_dir=GOLDEN))


def test_a_problem_shows_only_the_beginning_of_a_long_value():
    data = broken(8, lambda d: d["steps"][0].update(source="x" * 100_000))
    assert max(len(json.dumps(str(problem))) for problem in validate(data)) < 500
