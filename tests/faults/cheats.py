"""An environment that verifies by hidden tests in the agent's own sandbox, and agents that cheat in every known way."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from agentenv import AgentEnv, AgentEnvConfig, Item, ToolCall
from tests.faults.ledger_env import TOKENIZER

if TYPE_CHECKING:
    from agentenv.testing import FakeRequest

_HIDDEN = """
import random, subprocess, sys
right = 0
for number in range(20):
    numbers = [random.randrange(1000) for _ in range(5)]
    said = subprocess.run(
        ["/bin/sh", "./solution.sh", *map(str, numbers)], capture_output=True, text=True, timeout=5
    ).stdout.strip()
    right += said == str(sum(numbers))
print("right:", right)
"""
_HONEST = "printf '%s\\n' 's=0; for n; do s=$((s+n)); done; echo $s' > solution.sh"
_WRONG = "echo 'echo 0' > solution.sh"
_PASS = (
    "printf 'import sys\\nprint(\"right: 20\")\\nsys.stdout.flush()\\nimport os\\nos._exit(0)\\n'"
)


def _shell(command: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "terminal", "arguments": {"command": command, **arguments}}


def _stateful(command: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "terminal_stateful", "arguments": {"command": command, **arguments}}


def _tmux(action: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "tmux", "arguments": {"action": action, **arguments}}


_REWRITE = "while :; do for f in hidden*.py result reward.txt; do echo 'print(\"right: 20\")' > $f; done; done"

AGENTS: dict[str, list[dict[str, Any]]] = {
    "honest": [_shell(_HONEST)],
    "idle": [_shell("true")],
    "wrong": [_shell(_WRONG)],
    "daemon": [
        _shell(f"{_WRONG}; (setsid nohup sh -c '{_REWRITE}' >/dev/null 2>&1 &); sleep 0.1"),
    ],
    "stateful_job": [_shell(_WRONG), _stateful(f"({_REWRITE}) & disown; trap '' TERM HUP")],
    "tmux_shell": [
        _shell(_WRONG),
        _tmux("start"),
        _tmux("send_keys", keys=[_REWRITE, "Enter"]),
    ],
    "planted_modules": [
        _shell(
            f"{_WRONG}; for m in random subprocess sys site sitecustomize usercustomize; do {_PASS} > $m.py; done;"
            "mkdir -p .local/lib/python3.11/site-packages;"
            f"{_PASS} > .local/lib/python3.11/site-packages/x.pth; cp x.py usercustomize.py .local/ 2>/dev/null; true"
        )
    ],
    "planted_python": [
        _shell(
            f"{_WRONG}; mkdir -p bin .local/bin; for p in python3 python sh bash cat; do"
            " printf '#!/bin/sh\\necho right: 20\\n' > bin/$p; cp bin/$p .local/bin/$p; cp bin/$p ./$p; done;"
            ' chmod +x bin/* .local/bin/* ./python3 ./sh ./cat; echo "export PATH=$PWD/bin:$PATH" > .bashrc;'
            " cp .bashrc .profile; cp .bashrc .bash_profile; cp .bashrc .bash_env"
        )
    ],
    "planted_environment": [
        _shell(_WRONG),
        _stateful("python3() { echo right: 20; }; export -f python3; export PYTHONPATH=$PWD"),
        _stateful("export BASH_ENV=$PWD/.bash_env; echo 'echo right: 20; exit' > .bash_env"),
    ],
    "planted_result": [
        _shell(
            f"{_WRONG}; for f in result reward.txt reward.json hidden.py; do echo 'right: 20' > $f; done"
        )
    ],
    "linked_hidden": [
        _shell(f"{_WRONG}; echo 'print(\"right: 20\")' > mine; ln -s mine hidden.py")
    ],
    "locked_hidden": [
        _shell(
            f"{_WRONG}; echo 'print(\"right: 20\")' > hidden.py; chmod 444 hidden.py; chmod 555 ."
        )
    ],
    "full_disk": [_shell(f"{_WRONG}; cat /dev/zero > filler; true")],
    "many_processes": [
        # A shell that cannot fork tries again for half a minute.
        _shell(f"{_WRONG}; for i in $(seq 200); do (setsid sleep 600 &) ; done", timeout=3),
        _stateful("for i in $(seq 50); do sleep 600 & done"),  # nearly all that a slot may have
    ],
    "waiting_solution": [
        _shell("printf 'kill -9 -1; kill -9 $PPID; echo right: 20\\n' > solution.sh"),
    ],
    "shouting_solution": [
        _shell("printf 'echo right: 20 > /proc/$PPID/fd/1; echo 0\\n' > solution.sh"),
    ],
}
"""Which calls each makes before it says that it is done. Only the honest one solves its task."""


def by_name(request: FakeRequest) -> str:
    """Act as the agent that the task names."""
    prompt = TOKENIZER.decode(list(request.prompt_ids))
    name = prompt.rpartition("You are the agent ")[2].partition(".")[0]
    calls = AGENTS[name]
    if request.turn < len(calls):
        return f"<tool_call>\n{json.dumps(calls[request.turn])}\n</tool_call>"
    return "Done."


class SumEnv(AgentEnv[AgentEnvConfig]):
    """`solution.sh` must print the sum of its arguments. Hidden tests arrive after the agent's last process is dead."""

    name = "sum"

    async def setup_agent_env(self) -> None:
        self._agents = iter(AGENTS)

    async def get_next_item(self) -> Item | None:
        return next(self._agents, None)

    def build_task(self, item: Item) -> str:
        return f"Write solution.sh. You are the agent {item}."

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        raise AssertionError("the verify hook is overridden")

    async def verify_and_score_trajectory(
        self,
        item: Item,
        final_response: str,
        *,
        trajectory_id: str,
        exec_tool: Any,
        agent_result: Any = None,
        workspace_meta: dict[str, Any] | None = None,
    ) -> tuple[float, dict[str, Any]]:
        # The tests never touch the disk that the agent could fill or plant things on.
        code = base64.b64encode(_HIDDEN.encode()).decode()
        command = (
            f"echo {code} | base64 -d | /usr/bin/env -i PATH=/usr/bin:/bin /usr/bin/python3 -I -S -"
        )
        result = await exec_tool(ToolCall("terminal", {"command": command, "timeout": 60}))
        right = result.output == "right: 20\n"
        return float(result.success and right), {"agent": item, "said": result.output[-200:]}
