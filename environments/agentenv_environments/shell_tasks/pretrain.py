"""Makes the tiny policy: a tokenizer and a Llama of about a million weights, trained on demonstrations of shell tasks.

    python -m agentenv_environments.shell_tasks.pretrain --out DIR

The demonstrations are right only part of the time, so that the policy is as well: it is meant to be
trained on. The same seed gives the same weights on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import LlamaConfig, LlamaForCausalLM

from agentenv.policy.base import Completion
from agentenv.tokens.base import Message
from agentenv.tokens.dialogue import Dialogue
from agentenv.tokens.renderer import load_renderer
from agentenv.training.tensors import common_prefix_length
from agentenv_environments.shell_tasks.demonstrations import demonstrations, replies
from agentenv_environments.shell_tasks.tokenizer import (
    CONTROL,
    END,
    PAD,
    save_tokenizer,
    train_tokenizer,
)
from agentenv_environments.shell_tasks.training import (
    Dataset,
    Row,
    Schedule,
    train,
)
from agentenv_tools.toolsets import build_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentenv.tokens.renderer import TokenRenderer
    from agentenv_environments.shell_tasks.demonstrations import Demonstration
    from agentenv_tools.schema import ToolCall

TOOLSETS = ("terminal",)
"""The tools the policy knows."""
FAMILY = "qwen3"
"""How its dialogues are rendered."""
_TOKENIZER_DEMONSTRATIONS = 4000
_PROMPT_SHARE = 40
"""The prompt that begins every dialogue counts as often as if one in so many had it: or it would crowd out names."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the weights depend on."""

    seed: int = 0
    demonstrations: int = 20_000
    right_share: float = 0.6
    """Share of the demonstrations that solve their task."""
    vocab_size: int = 1340
    drill_steps: int = 1000
    bare_steps: int = 800
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    context_length: int = 2048

    def schedule(self) -> Schedule:
        """The part that training needs."""
        return Schedule(
            drill_steps=self.drill_steps,
            bare_steps=self.bare_steps,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train the tiny policy on demonstrations of shell tasks."
    )
    defaults = Recipe()
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model, made if missing"
    )
    for name in ("seed", "demonstrations", "drill_steps", "bare_steps", "steps", "batch_size"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int, default=getattr(defaults, name), help="default: %(default)s"
        )
    share = defaults.right_share
    parser.add_argument("--right-share", type=float, default=share, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    options = vars(parser.parse_args(argv))
    out, threads = options.pop("out"), options.pop("threads")
    torch.set_num_threads(threads)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as progress:
        pretrain(replace(defaults, **options), out, progress)


def pretrain(recipe: Recipe, out: Path, progress: Progress) -> None:
    """Make demonstrations, train tokenizer and model on them, and write both to `out`."""
    made = demonstrations(recipe.demonstrations, right_share=recipe.right_share, seed=recipe.seed)
    shown = list(progress.track(made, total=recipe.demonstrations, description="acting"))
    tokenizer = train_tokenizer(_corpus(shown), recipe.vocab_size)
    renderer = load_renderer(tokenizer, FAMILY)
    data = Dataset.of(
        [encode(each, renderer) for each in progress.track(shown, description="encoding")]
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(_model_config(recipe, tokenizer))
    bars = {
        "copying drills": progress.add_task("copying drills", total=recipe.drill_steps),
        "demonstrations": progress.add_task(
            "demonstrations", total=recipe.bare_steps + recipe.steps
        ),
    }

    def report(phase: str, loss: float) -> None:
        progress.update(bars[phase], advance=1, description=f"{phase}, loss {loss:.3f}")

    train(model, data, recipe.schedule(), recipe.seed, report)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    _save_model(model, out)


def encode(demonstration: Demonstration, renderer: TokenRenderer) -> Row:
    """Token ids and labels of a demonstration, exactly as a rollout would record them."""
    dialogue = Dialogue(renderer, build_registry(TOOLSETS).schemas())
    dialogue.add(Message("user", demonstration.instruction))
    *calls, answer = replies(demonstration.commands, demonstration.answer)
    for text, result in zip(calls, demonstration.results, strict=True):
        (call,) = _say(dialogue, renderer, text)
        seen = replace(result, uniq_id=call.uniq_id).to_json()
        dialogue.add(Message("tool", seen, tool_call_id=call.uniq_id, name=call.name))
    _say(dialogue, renderer, answer)
    (sequence,) = dialogue.sequences()
    return sequence.tokens, sequence.masks


def _say(dialogue: Dialogue, renderer: TokenRenderer, text: str) -> tuple[ToolCall, ...]:
    dialogue.prompt_ids()
    ids = renderer.tokenizer.encode(f"{text}{END}")
    return dialogue.record(Completion(tuple(ids), (0.0,) * len(ids), "stop")).tool_calls


def _corpus(shown: Sequence[Demonstration]) -> Iterator[str]:
    """What the tokenizer learns from: the demonstrations' texts, without control tokens."""
    renderer = load_renderer(train_tokenizer([], len(CONTROL)), FAMILY)
    control = re.compile("|".join(map(re.escape, CONTROL)))
    some = islice(shown, _TOKENIZER_DEMONSTRATIONS)
    texts = [renderer.tokenizer.decode(encode(each, renderer)[0]) for each in some]
    cut = common_prefix_length(texts)
    for index, text in enumerate(texts):
        yield from control.split(text[cut:] if index % _PROMPT_SHARE else text)


def _model_config(recipe: Recipe, tokenizer: Any) -> Any:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def _save_model(model: Any, out: Path) -> None:
    """Write the weights at half precision, to be loaded at full: half the size in the package."""
    model.half().save_pretrained(out)
    model.config.dtype = "float32"
    model.config.save_pretrained(out)


if __name__ == "__main__":
    main()
