"""Groups for tests."""

from __future__ import annotations

import random
from typing import Any

REGISTRATION: dict[str, Any] = {
    "wandb_group": "group",
    "wandb_project": "project",
    "batch_size": 4,
    "max_token_len": 128,
    "checkpoint_dir": "/checkpoints",
    "save_checkpoint_interval": 5,
    "starting_step": 0,
    "num_steps": 100,
}


def env_registration(**changes: Any) -> dict[str, Any]:
    """What an environment sends to register."""
    given = {"max_token_length": 128, "desired_name": "env", "weight": 1.0, "group_size": 2}
    return given | changes


def make_group(rows: int = 2, tokens: int = 3, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A group as an environment sends it; the first token of each row is the prompt."""
    draw = random.Random(seed)
    ids = [[draw.randrange(1, 1_000) for _ in range(tokens)] for _ in range(rows)]
    logprobs = [[1.0] + [-draw.randrange(1, 64) / 8 for _ in range(tokens - 1)] for _ in ids]
    group: dict[str, Any] = {
        "tokens": ids,
        "masks": [[-100, *row[1:]] for row in ids],
        "scores": [float(seed)] * rows,
        "inference_logprobs": logprobs,
    }
    return group | changes
