"""pass@k of a task: the chance that at least one of k runs passes."""

from __future__ import annotations

from math import comb


def pass_at_k(runs: int, passed: int, k: int) -> float:
    """The unbiased estimate from `passed` of `runs`: 1 - C(runs - passed, k) / C(runs, k) (Chen et al., 2021,
    Evaluating Large Language Models Trained on Code). Raises `ValueError` unless 1 <= k <= runs.
    """
    if not (1 <= k <= runs and 0 <= passed <= runs):
        raise ValueError(f"pass@{k} of {passed} in {runs} runs is not defined")
    return 1.0 - comb(runs - passed, k) / comb(runs, k)
