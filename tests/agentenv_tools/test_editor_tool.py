"""The tool `editor`: arguments in words a model can act on, and files of a real slot."""

import stat
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentenv_backends.config import LocalConfig
from agentenv_tools import (
    ToolArgumentsError,
    ToolCall,
    ToolExecutor,
    ToolExecutorConfig,
    ToolResult,
)
from agentenv_tools.editor_tool import EditorTool
from agentenv_tools.toolsets import build_registry


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"command": "fly", "path": "a"}, "command"),
        ({"command": "view"}, "path"),
        ({"command": "create", "path": "a"}, "needs file_text"),
        ({"command": "str_replace", "path": "a"}, "needs old_str"),
        ({"command": "str_replace", "path": "a", "old_str": ""}, "old_str is empty"),
        ({"command": "insert", "path": "a", "insert_line": 1}, "needs insert_text"),
        ({"command": "insert", "path": "a", "insert_line": -1, "insert_text": "x"}, "insert_line"),
        ({"command": "view", "path": "a", "view_range": [0, 3]}, "count from 1"),
        ({"command": "view", "path": "a", "view_range": [3, 2]}, "no range"),
        ({"command": "view", "path": "a", "view_range": [1]}, "view_range"),
        ({"command": "view", "path": "a", "colour": 1}, "colour"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(arguments: dict[str, Any], said: str):
    with pytest.raises(ToolArgumentsError, match=said):
        EditorTool().validate(arguments)


@pytest.fixture
async def executor() -> AsyncIterator[ToolExecutor]:
    """The toolset `agent_runner` over a local sandbox."""
    backend = LocalConfig(slots=1).build()
    await backend.start()
    running = ToolExecutor(backend, build_registry(["agent_runner"]), ToolExecutorConfig())
    try:
        await running.start()
        yield running
    finally:
        await running.close()
        await backend.stop()


@pytest.mark.sandbox
async def test_files_are_made_seen_and_changed(executor: ToolExecutor):
    async def edit(command: str, path: str = "src/a.py", **arguments: Any) -> ToolResult:
        call = ToolCall("editor", {"command": command, "path": path, **arguments})
        return await executor.execute("t", call)

    async def shell(command: str) -> str:
        return (await executor.execute("t", ToolCall("bash", {"command": command}))).output

    assert (await edit("create", file_text="one\ntwo\nthree\n")).success
    assert (await edit("view")).output == "     1\tone\n     2\ttwo\n     3\tthree"
    assert (await edit("view", view_range=[2, 3])).output == "     2\ttwo\n     3\tthree"
    assert (await edit("view", view_range=[3, -1])).output == "     3\tthree"
    assert (await edit("view", ".")).output == "src/"

    await shell("chmod 751 src/a.py")
    assert (await edit("str_replace", old_str="two", new_str="2")).success
    assert (await edit("insert", insert_line=0, insert_text="zero")).success
    assert (await edit("insert", insert_line=4, insert_text="four\nfive")).success
    assert await shell("cat src/a.py") == "zero\none\n2\nthree\nfour\nfive\n"
    assert stat.S_IMODE(int(await shell("stat -c %a src/a.py"), 8)) == 0o751

    assert "not" in ((await edit("str_replace", old_str="nine", new_str="")).error or "")
    assert not (await edit("str_replace", old_str="e", new_str="")).success
    assert "has 6 lines" in ((await edit("insert", insert_line=9, insert_text="x")).error or "")
    assert not (await edit("view", "gone")).success
    assert "outside" in ((await edit("create", "/etc/x", file_text="")).error or "")
    assert "outside" in ((await edit("view", "../..")).error or "")

    await shell("printf 'no end' > b; : > empty; printf '\\377\\376' > binary; mkdir void")
    assert (await edit("insert", "b", insert_line=1, insert_text="x")).success
    assert (await edit("insert", "empty", insert_line=0, insert_text="x")).success
    assert await shell("cat b empty") == "no end\nx\nx\n"
    assert not (await edit("insert", "binary", insert_line=0, insert_text="x")).success
    assert (await edit("view", "void")).output == "(empty)"
