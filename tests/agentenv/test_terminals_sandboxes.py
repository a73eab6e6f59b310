"""An agent at a real shell and a real terminal: what it reads, what its verifier finds, what the report replays."""

import json
import shutil
from typing import Any

import pytest

from agentenv import ToolCall
from agentenv.process import process
from agentenv.run.casts import read_cast
from agentenv.run.directory import RunDirectory, read_groups
from agentenv.run.replay import Replays
from agentenv.testing import FakeRequest
from agentenv_backends.config import LocalConfig
from tests.agentenv.fake_env import EchoEnv, make_env

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux: apt-get install tmux"),
]

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("terminal_stateful", {"command": "mkdir d; cd d; WORD=kept; sleep 300 &"}),
    ("terminal_stateful", {"command": "pwd; echo $WORD; jobs | grep -c sleep"}),
    ("terminal", {"command": "echo ${WORD:-none}; pwd"}),
    ("terminal_stateful", {"command": "sleep 60", "timeout": 1}),
    ("terminal_stateful", {"command": "echo $WORD after"}),
    ("tmux", {"action": "start", "pane_width": 80, "pane_height": 20}),
    ("tmux", {"action": "send_keys", "keys": ["seq 200 > n && less n", "Enter"], "min_wait_s": 1}),
    ("tmux", {"action": "send_keys", "keys": ["G"], "min_wait_s": 0.5}),
    ("tmux", {"action": "send_keys", "keys": "q", "min_wait_s": 0.5}),
    ("tmux", {"action": "send_keys", "keys": ["clear; echo done", "Enter"], "block": True}),
    ("tmux", {"action": "stream", "max_bytes": 100_000}),
    (
        "tmux",
        {"action": "send_keys", "keys": ["while :; do date +%N > beat; sleep 0.05; done", "Enter"]},
    ),
]


def worker(request: FakeRequest) -> str:
    """The calls above, one a turn."""
    if request.turn < len(CALLS):
        name, arguments = CALLS[request.turn]
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return "done"


class LiveEnv(EchoEnv):
    """Scores 1.0 when nothing of the agent is alive any more."""

    async def verify_and_score_trajectory(self, *args: Any, **keywords: Any) -> Any:
        alive = 'a=$(cat beat); sleep 0.5; test -n "$a" -a "$a" = "$(cat beat)"'
        result = await keywords["exec_tool"](ToolCall("terminal", {"command": alive}))
        return float(result.success), {"error": result.error}


async def test_an_agent_works_in_a_shell_and_a_terminal_and_all_of_it_can_be_replayed(tmp_path):
    env = make_env(
        worker,
        backend=LocalConfig(slots=2).build(),
        env_cls=LiveEnv,
        enabled_toolsets=["default", "terminal_stateful"],
        max_token_length=60_000,
        total_steps=1,
    )
    directory = await RunDirectory.open(tmp_path)
    await process(env, directory=directory, handle_signals=False)
    await directory.close()
    (group,) = read_groups(tmp_path)
    assert group.group["scores"] == [1.0, 1.0], group.trajectories[0].score_metadata
    for trajectory in group.trajectories:
        _check_results([call for step in trajectory.steps for call in step.tool_calls])
        _check_replay(tmp_path, trajectory.casts)


def _check_results(calls: list[Any]) -> None:
    said = [call.output for call in calls]
    assert said[1].split("\n")[:3] == ["/workspace/d", "kept", "1"]
    assert said[2] == "none\n/workspace\n"
    assert calls[3].error.startswith("Command timed out after 1s: it was interrupted")
    assert said[4] == "kept after\n"
    assert "200" in said[7]
    assert said[9].split("\n")[0] == "done"
    assert "\x1b" not in said[10]
    assert "200" in said[10]
    assert calls[10].metadata["next_offset"] > 200


def _check_replay(run_dir: Any, casts: tuple[str, ...]) -> None:
    shell, terminal = Replays(run_dir).of(casts)
    assert (shell["session"], terminal["session"]) == ("shell-1", "tmux-2")
    cast, _ = read_cast(run_dir / casts[0], 10**6)
    printed = "".join(event.data for event in cast.events if event.kind == "o")
    assert "$ pwd; echo $WORD; jobs | grep -c sleep\r\n/workspace/d\r\nkept\r\n" in printed
    rows = [row for frame in terminal["frames"] for row in frame["rows"].values()]
    assert "200" in rows
    assert any("while :; do" in row for row in rows)
    assert shell["notes"] == terminal["notes"] == []
