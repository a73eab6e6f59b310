"""Two steps of TRL's `GRPOTrainer` on eight tasks of shell_tasks, of which one cannot be had.

It runs in a process of its own, and its last line is JSON: what TRL was given and what it trained on.
"""

import json
import tempfile
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from agentenv.sinks.trl import TrlRollouts
from agentenv_environments.shell_tasks.environment import TINY_POLICY, ShellTasks

GROUP = 4


class LosesTheFirst(ShellTasks):
    """Its first task never becomes a group."""

    async def collect_trajectories(self, item: Any) -> Any:
        if item.id.endswith("-0"):
            return None, [item]
        return await super().collect_trajectories(item)


class Watched(GRPOTrainer):  # type: ignore[misc]
    """Notes, at the first loss of each batch, what TRL trains on and with which log-probs."""

    seen: list[dict[str, Any]]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        trained = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        with torch.no_grad():
            own, *_ = self._get_per_token_logps_and_entropies(
                model, ids, attention, inputs["completion_ids"].size(1)
            )
        ratio = torch.exp(own - inputs["sampling_per_token_logps"])[trained]
        self.seen.append(
            {
                "trained": int(trained.sum()),
                "tool_tokens": int((inputs["completion_mask"].bool() & ~trained).sum()),
                "ratio_error": float((ratio - 1).abs().max()),
                "advantages": inputs["advantages"].tolist(),
            }
        )
        return super()._compute_loss(model, inputs)


def main() -> None:
    config, servers = ShellTasks.config_init()
    config = config.model_copy(update={"group_size": GROUP, "total_steps": 1})
    model = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype="float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given: list[dict[str, Any]] = []
    with (
        TrlRollouts(LosesTheFirst(config, servers)) as rollouts,
        tempfile.TemporaryDirectory() as out,
    ):

        def noted(prompts: list[str], trainer: Any) -> dict[str, Any]:
            given.append(rollouts(prompts, trainer))
            return given[-1]

        trainer = Watched(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(TINY_POLICY),
            args=GRPOConfig(
                output_dir=out, max_steps=2, num_generations=GROUP, temperature=1.0,
                per_device_train_batch_size=4 * GROUP, learning_rate=1e-4, bf16=False, use_cpu=True,
                report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, seed=0,
            ),
            train_dataset=rollouts.dataset(8),
            rollout_func=noted,
            reward_funcs=rollouts.reward,
        )  # fmt: skip
        trainer.seen = []
        trainer.train()
        backend = rollouts.env.runtime.backend
    changed = any(
        not torch.equal(before[name], value) for name, value in model.state_dict().items()
    )
    result = {
        "seen": trainer.seen,
        "sampled": [sum(map(sum, batch["env_mask"])) for batch in given],
        "context": [sum(len(mask) - sum(mask) for mask in batch["env_mask"]) for batch in given],
        "rewards": [batch["agentenv_reward"] for batch in given],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "logged": [entry["reward"] for entry in trainer.state.log_history if "reward" in entry],
        "holes": rollouts.holes,
        "changed": changed,
        "hosts_left": backend.stats().hosts,
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
