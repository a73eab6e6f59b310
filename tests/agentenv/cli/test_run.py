import asyncio
import io
import json
import logging
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from agentenv.atif import read_trajectory
from agentenv.cli.main import main
from agentenv.cli.run import pausing
from agentenv.cli.run_console import ConsoleObserver
from agentenv.control.pause import PauseGate
from agentenv.tokens.base import ParsedReply
from agentenv_tools.schema import ToolCall, ToolResult
from tests.agentenv.runner.solving import TASK
from tests.agentenv.tasks.task_dirs import write_task

ROOT = Path(__file__).parents[3]
SERVER = """
import asyncio, sys
from agentenv.testing import FakeProviders, ModelReply, running_app

def script(request):
    turns = sum(message["role"] == "assistant" for message in request.body["messages"])
    if turns:
        return "Done \\x1b[31m[bold]."
    return ModelReply("Copying.", calls=(("c1", "bash", {"command": "cp given.txt answer.txt"}),))

async def serve():
    async with running_app(FakeProviders(script)) as running:
        print(running.root_url + "/v1", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(serve())
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    """A fake model in a process of its own, since the commands own the event loop of this one."""
    path = os.pathsep.join(str(ROOT / part) for part in ("", "backends", "tools", "environments"))
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.communicate("", timeout=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "t", "--provider", "daytona"], "docker, local, nomad, modal"),
        (["run", "t", "-m", "opus", "--provider", "local"], "no known provider"),
        (["run", "t", "-m", "gpt-4o", "--provider", "local"], "OPENAI_API_KEY"),
        (["batch", "empty"], "has no task directory"),
        (["batch", "tasks", "-n", "0"], "-n must be at least 1"),
        (["batch", "tasks", "-k", "x"], "invalid int value"),
        (["run", "t", "-i", "--provider", "local"], "standard input is none"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(arguments, said, capsys, monkeypatch):
    write_task(Path("t"), TASK)
    write_task(Path("tasks/t"), TASK)
    Path("empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not Path("output").exists()


def test_a_directory_that_is_no_task_is_refused_by_name(capsys):
    Path("t").mkdir()
    assert main(["run", "t", "-m", "m", "--base-url", "http://127.0.0.1:1/v1"]) == 2
    assert "task.toml" in capsys.readouterr().err


@pytest.mark.sandbox
def test_run_shows_what_happens_and_leaves_it_all(model_url, capsys):
    write_task(Path("t"), TASK)
    assert main(["run", "t", "-m", "my-model", "--base-url", model_url, "--provider", "local"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "model    my-model",
        "provider local",
        "[Agent] Copying.",
        '[Tool] bash {"command": "cp given.txt answer.txt"}',
        "[Agent] Done \\x1b[31m[bold].",
        "[Verify]",
        "[Result] PASS (reward 1)",
        "tokens   20 in (0 cached), 10 out",
        "duration",
    ):
        assert part in shown
    (folder,) = Path("output").iterdir()
    trajectory = read_trajectory(folder)
    (call,) = trajectory.steps[2].tool_calls or ()
    assert call.tool_call_id == "c1"
    context = json.loads((folder / "result.json").read_text())["agent_result"]
    assert (context["n_input_tokens"], context["n_output_tokens"]) == (20, 10)


@pytest.mark.sandbox
def test_batch_shows_each_task_and_the_totals(model_url, capsys):
    write_task(Path("tasks/easy"), TASK)
    write_task(Path("tasks/hard"), TASK, tests="#!/bin/sh\necho 0 > /logs/verifier/reward.txt\n")
    arguments = [
        "-m",
        "my-model",
        "--base-url",
        model_url,
        "--provider",
        "local",
        "-k",
        "2",
        "-o",
        "out",
    ]
    assert main(["batch", "tasks", *arguments]) == 1
    shown = capsys.readouterr().out
    assert shown.count("PASS  tasks/easy") == 2
    assert shown.count("FAIL  tasks/hard") == 2
    for part in ("pass@1", "pass@2", "0.5000"):
        assert part in shown
    (batch,) = Path("out").iterdir()
    assert len(list(batch.iterdir())) == 4


async def test_the_key_p_closes_the_gate_and_opens_it_and_the_terminal_is_as_before(monkeypatch):
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    gate = PauseGate()

    async def press(keys: bytes, *, paused: bool) -> None:
        os.write(controller, keys)
        async with asyncio.timeout(60):
            while gate.paused is not paused:
                await asyncio.sleep(0.01)

    with os.fdopen(terminal, "rb", buffering=0) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pausing(gate, Console(file=io.StringIO())):
            await press(b"p", paused=True)
            await press(b"xp", paused=False)
            await press(b"P", paused=True)
        assert termios.tcgetattr(terminal) == before
    os.close(controller)


def test_nothing_that_was_written_is_markup_or_control(capsys):
    observer = ConsoleObserver(Console(highlight=False))
    observer.reply("t", ParsedReply("", "[red]a\x1b[2J\nb", None, ()))
    observer.tool_started("t", ToolCall("x\x07", {"a": "[bold]"}))
    observer.tool_finished("t", ToolCall("x"), ToolResult(False, "out\n" * 9, error="bad \x9b"))
    shown = capsys.readouterr().out
    assert "[Agent] [red]a\\x1b[2J b" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\x9b" not in shown
    assert "4 more lines" in shown
