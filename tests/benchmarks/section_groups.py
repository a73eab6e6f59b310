"""Groups of eight long sequences: from finished dialogues to a line of `groups.jsonl`."""

from __future__ import annotations

import random
import sys
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from agentenv.group import GroupContext, MemberContext, build_group, to_item
from agentenv.outcomes import Outcome, StopReason
from agentenv.policy.base import Completion
from agentenv.records import group_record
from agentenv.rollout import RolloutRecord
from agentenv.run.jsonl import encode_line
from agentenv.testing.tokenizers import tiny_tokenizer
from agentenv.tokens.base import Message
from agentenv.tokens.dialogue import Dialogue
from agentenv.tokens.messages import to_chat_messages
from agentenv.tokens.renderer import TokenRenderer, load_renderer
from agentenv.types import AgentResult, AgentStep
from tests.benchmarks.figures import Effort, Row, Section

if TYPE_CHECKING:
    from agentenv.types import ScoredDataGroup

_MEMBERS = 8
_TURNS = 16
_MIB = 1 << 20
_PLAIN_IDS = range(300, 440)
"""Ids of ordinary pieces of text, beyond the small numbers of which Python keeps one object each."""


async def run(effort: Effort) -> Section:
    """Half of the tokens are sampled, in 16 turns, with log-probs as engines give them."""
    tokenizer = tiny_tokenizer("qwen3")
    renderer = load_renderer(tokenizer, "qwen3")
    end = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    dialogues = [_dialogue(renderer, end, effort.sequence_tokens, n) for n in range(_MEMBERS)]
    times: dict[str, list[float]] = {}
    line_bytes = tokens = 0
    for _ in range(effort.rounds):
        line_bytes, tokens = _once(dialogues, times)
    records = [_record(dialogue, number) for number, dialogue in enumerate(dialogues)]
    weight = _deep_size(_group(records))
    rows = [
        Row(step, {"ms": median(taken) * 1e3, "groups/s": 1 / median(taken)})
        for step, taken in times.items()
    ]
    whole = sum(median(taken) for taken in times.values())
    rows.append(Row("all of it", {"ms": whole * 1e3, "groups/s": 1 / whole}))
    rows.append(Row("memory of a group", {"MiB": weight / _MIB}, "lists and the numbers in them"))
    rows.append(Row("line in groups.jsonl", {"MiB": line_bytes / _MIB}))
    title = f"Groups of {_MEMBERS} sequences, {tokens // _MEMBERS} tokens each"
    return Section("groups", title, tuple(rows))


def _once(dialogues: list[Dialogue], times: dict[str, list[float]]) -> tuple[int, int]:
    started = perf_counter()
    records = [_record(dialogue, number) for number, dialogue in enumerate(dialogues)]
    recorded = perf_counter()
    group = _group(records)
    built = perf_counter()
    context = GroupContext(0, [MemberContext(0, n, [r]) for n, r in enumerate(records)])
    line = encode_line(group_record(0, {"id": "x"}, "task", group, context.members, 1.0).to_json())
    written = perf_counter()
    times.setdefault("dialogues to checked records", []).append(recorded - started)
    times.setdefault("records to a group", []).append(built - recorded)
    times.setdefault("group to a line", []).append(written - built)
    return len(line), sum(len(tokens) for tokens in group["tokens"])


def _group(records: list[RolloutRecord]) -> ScoredDataGroup:
    items = [to_item(record, include_messages=False) for record in records]
    return build_group([item for item in items if item is not None])


def _dialogue(renderer: TokenRenderer, end: int, tokens: int, seed: int) -> Dialogue:
    """A dialogue of `_TURNS` replies that together with their prompts come to about `tokens` tokens."""
    draw = random.Random(seed)
    dialogue = Dialogue(renderer)
    dialogue.add(Message("user", "Work on it."))
    half_turn = tokens // _TURNS // 2
    for turn in range(_TURNS):
        prompt = dialogue.prompt_ids()
        target = tokens * (turn + 1) // _TURNS - half_turn
        sampled = (*(draw.choice(_PLAIN_IDS) for _ in range(half_turn - 1)), end)
        logprobs = tuple(-draw.expovariate(2.0) for _ in sampled)
        dialogue.record(Completion(sampled, logprobs, "stop"))
        missing = max(1, target + half_turn - len(prompt) - len(sampled))
        if turn + 1 < _TURNS:
            content = "".join(draw.choices("0123456789", k=missing))
            dialogue.add(Message("tool", content, tool_call_id=f"call_{turn}", name="terminal"))
    return dialogue


def _record(dialogue: Dialogue, number: int) -> RolloutRecord:
    sequences = tuple(dialogue.sequences())
    result = AgentResult(
        success=True,
        final_response="done",
        stop_reason=StopReason.FINAL_ANSWER,
        steps=(AgentStep(1, "done"),),
        sequences=sequences,
        messages=tuple(to_chat_messages(dialogue.messages)),
        total_tokens=dialogue.sampled_tokens,
    )
    return RolloutRecord(
        f"t{number}", Outcome.SCORED, StopReason.FINAL_ANSWER, float(number % 2), result
    )


def _deep_size(value: object, seen: set[int] | None = None) -> int:
    """Bytes of a value of dicts and lists with all that they hold, shared objects once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sys.getsizeof(value) + sum(_deep_size(entry, seen) for entry in inner)
