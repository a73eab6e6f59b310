"""An environment written against the predecessor's interface runs after changing its imports only."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentenv import (
    AgentConfig,
    AgentEnv,
    AgentEnvConfig,
    APIServerConfig,
    Item,
    ToolCall,
)
from agentenv.testing import FakeEngine, FakeRequest, running_engine
from agentenv.testing.tokenizers import tiny_tokenizer

# ------------------------------------------------------------------ as a user of that interface wrote it


class WordCountConfig(AgentEnvConfig):
    words: int = 3


class WordCount(AgentEnv[WordCountConfig]):
    name = "word_count"
    env_config_cls = WordCountConfig

    @classmethod
    def config_init(cls) -> tuple[WordCountConfig, list[APIServerConfig]]:
        env_config = WordCountConfig(
            group_size=2,
            total_steps=2,
            tool_pool_mode="local",
            slots_per_container=4,
            max_containers=1,
            allow_network=False,
            require_sandbox=True,
            enabled_toolsets=["terminal"],
            agent_max_steps=5,
            max_token_length=4096,
            include_messages=True,
        )
        return env_config, [
            APIServerConfig(model_name="m", base_url="http://localhost:9/v1", server_type="vllm")
        ]

    async def setup_agent_env(self) -> None:
        self.items = [{"id": n, "text": "word " * (self.config.words + n)} for n in range(5)]
        self.seen: list[str] = []

    async def get_next_item(self) -> Item:
        return self.items.pop(0) if self.items else None

    def build_task(self, item: Item) -> str:
        return "Count the words of input.txt and write the number to answer.txt."

    def build_agent_config(self, item: Item) -> AgentConfig:
        return AgentConfig(temperature=1.0, max_steps=self.config.agent_max_steps)

    async def setup_trajectory_workspace(
        self, item: Item, *, trajectory_id: str, exec_tool: Any
    ) -> dict[str, Any]:
        result = await exec_tool(
            ToolCall(name="terminal", arguments={"command": f"printf '{item['text']}' > input.txt"})
        )
        assert result.success, result.error
        return {"expected": len(item["text"].split())}

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
        result = await exec_tool(ToolCall(name="terminal", arguments={"command": "cat answer.txt"}))
        assert workspace_meta is not None
        score = 1.0 if result.output.strip() == str(workspace_meta["expected"]) else 0.0
        self.seen.append(final_response)
        return score, {"answer": result.output.strip()}

    async def score_trajectory(self, item: Item, final_response: str) -> float:
        raise AssertionError("the verify hook is overridden")


# -------------------------------------------------------------------------------------------------------


def solve(request: FakeRequest) -> str:
    if request.turn == 0:
        call = {
            "name": "terminal",
            "arguments": {"command": "wc -w < input.txt | tr -d ' ' > answer.txt"},
        }
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    return "Done."


@pytest.mark.sandbox
async def test_such_an_environment_gives_scored_groups(tmp_path: Path):
    tokenizer = tiny_tokenizer("qwen3")
    tokenizer.save_pretrained(tmp_path)
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    async with running_engine(FakeEngine(solve, tokenizer=tokenizer, end_ids=end)) as engine:
        config, servers = WordCount.config_init()
        config.tokenizer_name = str(tmp_path)
        config.renderer = "qwen3"
        servers[0].base_url = engine.base_url
        env = WordCount(config, servers)
        await env.setup()
        try:
            group, backlog = await env.collect_trajectories(await env.get_next_item())
        finally:
            await env.shutdown()
    assert backlog == []
    assert group is not None
    assert group["scores"] == [1.0, 1.0]
    assert group["messages"] is not None
    assert [m["role"] for m in group["messages"][0]] == ["user", "assistant", "user", "assistant"]
    assert "<tool_response>" in group["messages"][0][2]["content"]
    assert env.seen == ["Done.", "Done."]
    for tokens, masks, logprobs in zip(
        group["tokens"], group["masks"], group["inference_logprobs"] or [], strict=True
    ):
        assert len(tokens) == len(masks) == len(logprobs)
        assert any(mask != -100 for mask in masks)
        assert all(
            (mask == -100) == (logprob == 1.0)
            for mask, logprob in zip(masks, logprobs, strict=True)
        )
