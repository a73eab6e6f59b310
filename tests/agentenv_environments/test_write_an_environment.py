"""The code of docs/write_an_environment.md, run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from agentenv import AgentEnvConfig, APIServerConfig
from agentenv.runtime import EnvRuntime
from agentenv.testing import FakePolicy
from agentenv_environments.shell_tasks.environment import TINY_POLICY

PAGE = Path(__file__).parents[2] / "docs" / "write_an_environment.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def defined_by(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "deep_file"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def command(text: str) -> str:
    return (
        f'<tool_call>\n{{"name": "terminal", "arguments": {{"command": "{text}"}}}}\n</tool_call>'
    )


async def scores(env_class: Any, replies: list[str]) -> list[float]:
    config = AgentEnvConfig(group_size=2, tokenizer_name=TINY_POLICY, renderer="qwen3")
    tokenizer = AutoTokenizer.from_pretrained(TINY_POLICY)
    policy = FakePolicy(replies, tokenizer=tokenizer, end_ids=[tokenizer.eos_token_id])
    servers = [APIServerConfig(base_url="http://localhost:1")]
    env = env_class(config, servers)
    env.runtime = EnvRuntime(config, servers, env.tools, policy=policy)
    await env.setup()
    try:
        group, backlog = await env.collect_trajectories(await env.get_next_item())
    finally:
        await env.shutdown()
    assert backlog == []
    scored: list[float] = group["scores"]
    return scored


@pytest.mark.sandbox
async def test_the_environment_on_the_page_scores_the_right_answer():
    env_class = defined_by(blocks("python")[0])["DeepFile"]

    assert await scores(env_class, [command("cat c/d/number.txt"), "100"]) == [1.0, 1.0]
    assert await scores(env_class, [command("ls"), "I do not know"]) == [0.0, 0.0]


@pytest.mark.sandbox
async def test_the_verification_on_the_page_looks_at_the_workspace():
    page = blocks("python")
    marker = "    async def score_trajectory"
    env_class = defined_by(page[0].replace(marker, f"{page[1]}\n{marker}"))["DeepFile"]

    assert await scores(env_class, [command("echo 100 > answer.txt"), "Done."]) == [1.0, 1.0]
    assert await scores(env_class, [command("echo 7 > answer.txt"), "100"]) == [0.0, 0.0]


def test_the_configuration_on_the_page_takes_the_file_on_the_page():
    (code,) = (block for block in blocks("python") if "class DeepFileConfig" in block)
    config_class = defined_by(f"from agentenv import AgentEnv, AgentEnvConfig\n{code}")[
        "DeepFileConfig"
    ]
    file = yaml.safe_load(blocks("yaml")[0])

    assert config_class(**file["env"]).deepest == 5
    assert APIServerConfig(**file["openai"]).server_type == "vllm"
    assert file["environment"] == "deep_file:DeepFile"


def test_the_environment_on_the_page_is_short():
    body = [line for line in blocks("python")[0].splitlines() if line.strip()]

    assert len(body) <= 18
