"""What a run's rollouts do, as far as a page shows it: in memory, and bounded however long and large the run is.

Everything has a version: that of the board rises with each event, and a trajectory has the one of its last event. So
whoever shows the board keeps nothing here: it asks what changed since the version that it knows, whenever it likes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentenv.observer import RolloutObserver
from agentenv.run.jsonl import json_plain
from agentenv.run.page import clip
from agentenv.task import item_id
from agentenv.watch.pictures import KeptPictures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv.observer import Judgement
    from agentenv.rollout import RolloutRecord
    from agentenv.task import Task, Verdict
    from agentenv.tokens.base import ParsedReply
    from agentenv_tools.schema import ImagePart, ToolCall, ToolResult

KEPT_ENDED = 1_000
"""Of trajectories that have ended, the last so many are kept."""
KEPT_ENTRIES = 100
"""Of one trajectory."""
ENTRY_CHARS = 8_000
MAX_CHARS = 32_000_000
"""Of all entries together. Beyond it, trajectories that have been quiet for longest lose theirs."""
_TITLE_CHARS = 200
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Slots:
    """How many sandboxes there may be, how many are in use, and how many trajectories wait for one."""

    total: int
    used: int
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    """Counted within the trajectory, from 1."""
    kind: str
    title: str
    text: str
    at: float
    failed: bool = False
    pictures: tuple[dict[str, Any], ...] = ()
    """See `KeptPictures.add`."""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Watched:
    """One trajectory."""

    number: int
    trajectory_id: str
    task: str
    label: str
    """What it is part of."""
    started_at: float
    cancel: Callable[[], None]
    state: str = "starting"
    changed: int = 0
    steps: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    reward: float | None = None
    outcome: str | None = None
    """None while it runs."""
    ended_at: float | None = None
    noted: int = 0
    entries: deque[_Entry] = field(default_factory=deque)

    def to_json(self) -> dict[str, Any]:
        hidden = ("cancel", "entries", "noted")
        return {name: getattr(self, name) for name in self.__slots__ if name not in hidden}


class Board(RolloutObserver):
    """Told of rollouts, and asked for what is new. For one event loop."""

    def __init__(self) -> None:
        self.version = 0
        self.closed = False
        self.pictures = KeptPictures()
        self._started = 0
        self._watched: OrderedDict[int, _Watched] = OrderedDict()
        """By number, the one that changed last at the end."""
        self._running: dict[str, _Watched] = {}
        self._ended: deque[int] = deque()
        self._forgotten = 0
        """Version of the last change of a trajectory that is no longer kept."""
        self._outcomes: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._cost_usd: float | None = None
        self._chars = 0
        self._asking: set[asyncio.Future[None]] = set()

    # ---- what is told ----

    def started(self, trajectory_id: str, task: Task, cancel: Callable[[], None]) -> None:
        """A rollout begins."""
        self.begin(trajectory_id, task, cancel)

    def begin(
        self, trajectory_id: str, task: Task, cancel: Callable[[], None], label: str = ""
    ) -> None:
        """A rollout begins, of what is called `label` where a run has several."""
        self._started += 1
        watched = _Watched(
            self._started, trajectory_id, _title(task), label[:_TITLE_CHARS], time.time(), cancel
        )
        self._watched[watched.number] = self._running[trajectory_id] = watched
        self._note(watched, "task", "Task", task.instruction)

    def step_started(self, trajectory_id: str, name: str, instruction: str) -> None:
        """A step of a task that has several begins."""
        watched = self._running[trajectory_id]
        first = watched.noted == 1  # its instruction is what the task began with
        self._note(watched, "task", f"Step of the task: {name}", "" if first else instruction)

    def reply(self, trajectory_id: str, reply: ParsedReply) -> None:
        """The policy wrote something."""
        watched = self._running[trajectory_id]
        watched.steps += 1
        self._totals["steps"] += 1
        watched.state = "working"
        self._count_usage(watched, reply)
        if reply.reasoning:
            self._note(watched, "reasoning", f"Step {watched.steps}: reasoning", reply.reasoning)
        self._note(watched, "reply", f"Step {watched.steps}: reply", reply.content)

    def tool_started(self, trajectory_id: str, call: ToolCall) -> None:
        """A call begins."""
        watched = self._running[trajectory_id]
        watched.tool_calls += 1
        self._totals["tool_calls"] += 1
        watched.state = f"runs {call.name}"[:_TITLE_CHARS]
        given = list(call.arguments.values())
        alone = given[0] if len(given) == 1 and isinstance(given[0], str) else None
        text = _as_text(call.arguments) if alone is None else alone
        self._note(watched, "call", call.name, text)

    def tool_finished(self, trajectory_id: str, call: ToolCall, result: ToolResult) -> None:
        """It has its result."""
        watched = self._running[trajectory_id]
        watched.state = "working"
        watched.tool_errors += not result.success
        self._totals["tool_errors"] += not result.success
        text = "\n".join(part for part in (result.error, result.output) if part)
        title = f"{call.name}: result"
        self._note(watched, "result", title, text, failed=not result.success, images=result.images)

    def verifying(self, trajectory_id: str) -> None:
        """The agent has ended."""
        watched = self._running[trajectory_id]
        watched.state = "is verified"
        self._touch(watched)

    def judged(self, trajectory_id: str, judgement: Judgement) -> None:
        """Tests of a task directory ended."""
        watched = self._running[trajectory_id]
        tests = "Tests" if judgement.step is None else f"Tests of step {judgement.step}"
        rewards = judgement.rewards or {}
        found = ", ".join(f"{name} {value:g}" for name, value in rewards.items()) or "no reward"
        text = "\n".join(part for part in (judgement.failure, judgement.output) if part)
        failed = judgement.failure is not None
        self._note(watched, "tests", f"{tests}: {found}", text, failed=failed)

    def verified(self, trajectory_id: str, verdict: Verdict) -> None:
        """There is a reward."""
        watched = self._running[trajectory_id]
        watched.reward = verdict.reward
        self._note(watched, "tests", f"Reward: {verdict.reward:g}", _as_text(verdict.metadata))

    def ended(self, trajectory_id: str, record: RolloutRecord) -> None:
        """The rollout is over."""
        watched = self._running.pop(trajectory_id)
        watched.state, watched.outcome = "ended", record.outcome.value
        watched.reward, watched.ended_at = record.reward, time.time()
        self._outcomes[watched.outcome] += 1
        told = f"{record.outcome.value}, {record.stop_reason.value}"
        self._note(watched, "end", f"Ended: {told}", record.cause or "", failed=bool(record.cause))
        self._ended.append(watched.number)
        if len(self._ended) > KEPT_ENDED:
            old = self._watched.pop(self._ended.popleft())
            self._forgotten = max(self._forgotten, old.changed)
            self._clear(old)

    def _count_usage(self, watched: _Watched, reply: ParsedReply) -> None:
        usage = reply.usage
        if usage is None:
            return
        watched.input_tokens += usage.prompt_tokens
        watched.output_tokens += usage.completion_tokens
        self._totals["input_tokens"] += usage.prompt_tokens
        self._totals["output_tokens"] += usage.completion_tokens
        if usage.cost_usd is not None:
            watched.cost_usd = (watched.cost_usd or 0.0) + usage.cost_usd
            self._cost_usd = (self._cost_usd or 0.0) + usage.cost_usd

    def _note(
        self,
        watched: _Watched,
        kind: str,
        title: str,
        text: str,
        *,
        failed: bool = False,
        images: Sequence[ImagePart] = (),
    ) -> None:
        watched.noted += 1
        text = clip(text, ENTRY_CHARS, "the trajectory")
        told = tuple(self.pictures.add(images))
        entry = _Entry(watched.noted, kind, title[:_TITLE_CHARS], text, time.time(), failed, told)
        watched.entries.append(entry)
        self._chars += len(entry.text)
        if len(watched.entries) > KEPT_ENTRIES:
            self._chars -= len(watched.entries.popleft().text)
        self._touch(watched)
        while self._chars > MAX_CHARS:
            self._clear(next(old for old in self._watched.values() if old.entries))

    def _clear(self, watched: _Watched) -> None:
        self._chars -= sum(len(entry.text) for entry in watched.entries)
        watched.entries.clear()

    def _touch(self, watched: _Watched) -> None:
        self.version += 1
        watched.changed = self.version
        self._watched.move_to_end(watched.number)
        self._wake()

    def _wake(self) -> None:
        for asking in self._asking:
            if not asking.done():
                asking.set_result(None)

    # ---- what is asked ----

    async def news(self, since: int, within_s: float) -> None:
        """Wait until there is something newer than version `since`, the board is closed, or the time has passed."""
        if self.version > since or self.closed:
            return
        asking = asyncio.get_running_loop().create_future()
        self._asking.add(asking)
        try:
            await asyncio.wait({asking}, timeout=within_s)
        finally:
            self._asking.discard(asking)

    def close(self) -> None:
        """Nothing more is to come: let go of whoever waits."""
        self.closed = True
        self._wake()

    def cancel(self, number: int) -> bool:
        """Withdraw a trajectory; False when it does not run."""
        watched = self._watched.get(number)
        if watched is None or watched.outcome is not None:
            return False
        watched.cancel()
        return True

    def changes(self, since: int, shown: int = 0, seen: int = 0) -> dict[str, Any]:
        """Totals, trajectories that changed after version `since`, and entries of number `shown` after the `seen`-th.

        At most some hundred trajectories at once, those first that changed first; `version` is what to ask from next.
        `closed` is said with the last of them. `kept` are the numbers of all there are, for whoever may have missed the
        end of one that is no longer kept; else None.
        """
        changed = []
        for watched in reversed(self._watched.values()):
            if watched.changed <= since:
                break
            changed.append(watched)
        part = changed[::-1][:_ROWS_AT_ONCE]
        showing = self._watched.get(shown)
        entries = [entry for entry in (showing.entries if showing else ()) if entry.number > seen]
        whole = len(part) == len(changed)
        return {
            "version": self.version if whole else part[-1].changed,
            "closed": self.closed and whole,
            "kept_ended": KEPT_ENDED,
            "kept": list(self._watched) if since < self._forgotten else None,
            "totals": self._totals
            | {
                "started": self._started,
                "running": len(self._running),
                "outcomes": self._outcomes,
                "cost_usd": self._cost_usd,
            },
            "trajectories": [watched.to_json() for watched in part],
            "shown": shown,
            "entries": [entry.to_json() for entry in entries],
        }


def _title(task: Task) -> str:
    """A task directory's name, an item's own, or how the instruction begins."""
    name = task.metadata.get("name") or item_id(task.item)
    return str(name or " ".join(task.instruction[:1000].split()))[:_TITLE_CHARS]


def _as_text(metadata: Mapping[str, Any]) -> str:
    """Names and values, a line or more each."""
    lines = []
    for name, value in clip(json_plain(metadata), ENTRY_CHARS, "the trajectory").items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name}:\n{text}" if "\n" in text else f"{name}: {text}")
    return "\n".join(lines)
