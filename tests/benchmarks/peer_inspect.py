"""Runs in the Python that has inspect_ai: the same sweep over trivial samples with its mock model, and its log reader.

    python -m tests.benchmarks.peer_inspect sweep FOLDER SAMPLES CONCURRENCY [local]
    python -m tests.benchmarks.peer_inspect write FOLDER SAMPLES LOG       a log of more samples, made of those of LOG
    python -m tests.benchmarks.peer_inspect read LOG

Prints one line of JSON. Nothing is displayed, and no log is kept of the display: what it does by default beside that.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any
from zipfile import ZipFile


def sweep(folder: str, samples: int, concurrency: int, sandbox: str | None) -> dict[str, Any]:
    """Generate once, in a sandbox after one command, and score by comparing."""
    import inspect_ai
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import match
    from inspect_ai.solver import Generate, TaskState, generate, solver
    from inspect_ai.util import sandbox as its_sandbox

    @solver  # type: ignore[untyped-decorator, unused-ignore]
    def run_a_command() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            await its_sandbox().exec(["true"])
            return state

        return solve

    dataset = MemoryDataset(
        [
            Sample(id=str(number), input=f"task {number}", target="right")
            for number in range(samples)
        ]
    )
    steps = [run_a_command(), generate()] if sandbox else [generate()]
    task = Task(dataset=dataset, solver=steps, scorer=match(), sandbox=sandbox)
    model = get_model("mockllm/model", custom_outputs=_answers(), memoize=False)
    began = time.perf_counter()
    (log,) = inspect_ai.eval(
        task,
        model=model,
        log_dir=folder,
        display="none",
        max_samples=concurrency,
        max_connections=concurrency,
        max_subprocesses=concurrency,
    )
    seconds = time.perf_counter() - began
    if log.status != "success" or log.results is None:
        reason = log.error.message if log.error else ""
        return {"missing": f"its evaluation ended with {log.status}: {reason[:300]}"}
    return {
        "version": inspect_ai.__version__,
        "seconds": seconds,
        "peak_bytes": _peak_bytes(),
        "samples": log.results.completed_samples,
        "log": str(log.location),
    }


def _answers() -> Any:
    """One answer for each sample, made as it is asked for; with its usage, or its tokens would be counted."""
    from inspect_ai.model import ModelOutput, ModelUsage

    while True:
        answer = ModelOutput.from_content("mockllm/model", "right")
        answer.usage = ModelUsage(input_tokens=10, output_tokens=1, total_tokens=11)
        yield answer


def write(folder: str, samples: int, source: str) -> dict[str, Any]:
    """A log of many samples: the entries of one that it wrote itself, repeated under new names. Its own writer would
    take minutes for the same.
    """
    import inspect_ai.log  # noqa: F401 - teaches `zipfile` how its logs are compressed

    target = str(Path(folder) / "many.eval")
    numbers = range(samples)
    with ZipFile(source) as few, ZipFile(target, "w") as many:
        entries = {entry.filename: entry for entry in few.infolist()}
        some = [name for name in entries if name.startswith("samples/")]
        documents = [json.loads(few.read(name)) for name in some]

        def add(name: str, like: str, content: Any) -> None:
            text = json.dumps(content, separators=(",", ":"))
            many.writestr(name, text, entries[like].compress_type)

        for number, document in zip(numbers, cycle(documents), strict=False):
            add(f"samples/{number}_epoch_1.json", some[0], document | {"id": str(number)})
        for name, change in _CHANGES.items():
            add(name, name, change(json.loads(few.read(name)), numbers))
    _check(target, samples)
    return {"log": target}


def _repeated(parts: list[dict[str, Any]], numbers: range, name: str) -> list[dict[str, Any]]:
    return [part | {name: str(number)} for number, part in zip(numbers, cycle(parts), strict=False)]


def _reductions(found: list[dict[str, Any]], numbers: range) -> list[dict[str, Any]]:
    return [each | {"samples": _repeated(each["samples"], numbers, "sample_id")} for each in found]


def _header(header: dict[str, Any], numbers: range) -> dict[str, Any]:
    count = len(numbers)
    header["eval"]["dataset"] |= {"samples": count, "sample_ids": [str(n) for n in numbers]}
    header["results"] |= {"total_samples": count, "completed_samples": count}
    for score in header["results"]["scores"]:
        score["scored_samples"] = count
    return header


def _start(start: dict[str, Any], numbers: range) -> dict[str, Any]:
    sample_ids = [str(n) for n in numbers]
    start["eval"]["dataset"] |= {"samples": len(numbers), "sample_ids": sample_ids}
    return start


_CHANGES: dict[str, Callable[[Any, range], Any]] = {
    "_journal/start.json": _start,
    "summaries.json": lambda found, numbers: _repeated(found, numbers, "id"),
    "reductions.json": _reductions,
    "header.json": _header,
}
"""What is in a log beside its samples, and how it becomes that of many. Without the summaries as they were written
while it ran: its readers pass those by once there are all in one.
"""


def _check(log: str, samples: int) -> None:
    """Its own readers find all of it."""
    from inspect_ai.log import (
        read_eval_log,
        read_eval_log_sample,
        read_eval_log_sample_summaries,
    )

    header = read_eval_log(log, header_only=True)
    last = read_eval_log_sample(log, id=str(samples - 1))
    assert header.results is not None
    assert header.results.completed_samples == header.eval.dataset.samples == samples
    assert len(read_eval_log_sample_summaries(log)) == samples
    assert last.scores
    assert last.messages


def read(log: str) -> dict[str, Any]:
    """The leanest of its readers that sees every sample, and the mean of the scores."""
    from inspect_ai.log import read_eval_log_sample_summaries

    began = time.perf_counter()
    summaries = read_eval_log_sample_summaries(log)
    right = sum(
        score.value == "C" for summary in summaries for score in (summary.scores or {}).values()
    )
    return {
        "seconds": time.perf_counter() - began,
        "samples": len(summaries),
        "mean": right / len(summaries),
    }


def _peak_bytes() -> int:
    """Of this program: `ru_maxrss` would count what its parent held when it was forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(words: list[str]) -> dict[str, Any]:
    """One order."""
    try:
        import inspect_ai  # noqa: F401
    except ModuleNotFoundError:
        return {"missing": f"{sys.executable} has no inspect_ai"}
    if words[0] == "sweep":
        folder, samples, concurrency, *sandbox = words[1:]
        return sweep(folder, int(samples), int(concurrency), next(iter(sandbox), None))
    if words[0] == "write":
        return write(words[1], int(words[2]), words[3])
    return read(words[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
