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
from pathlib import Path
from typing import Any


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
    """A log with many samples, as its own writer has it."""
    from inspect_ai.log import read_eval_log, write_eval_log

    log = read_eval_log(source)
    some = log.samples or []
    log.samples = [
        some[number % len(some)].model_copy(update={"id": str(number)}) for number in range(samples)
    ]
    target = str(Path(folder) / "many.eval")
    write_eval_log(log, target)
    return {"log": target}


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
