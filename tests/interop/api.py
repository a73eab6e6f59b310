"""The trajectory API as a trainer and an environment of Atropos see it: plain JSON over HTTP, nothing of ours."""

from __future__ import annotations

from typing import Any, Self

import httpx

TRAINER: dict[str, Any] = {
    "wandb_group": "a group",
    "wandb_project": "a project",
    "batch_size": 8,
    "max_token_len": 512,
    "checkpoint_dir": "checkpoints",
    "save_checkpoint_interval": 5,
    "starting_step": 0,
    "num_steps": 1000,
}
ENV: dict[str, Any] = {
    "max_token_length": 2048,
    "desired_name": "env",
    "weight": 1.0,
    "group_size": 2,
}
GROUP_KEYS = {
    "tokens",
    "masks",
    "scores",
    "advantages",
    "ref_logprobs",
    "messages",
    "generation_params",
    "inference_logprobs",
    "overrides",
    "group_overrides",
    "images",
    "env_id",
    "distill_token_ids",
    "distill_logprobs",
}
"""What a stored group comes back with, absent values as null."""


def group(
    sequences: int = 2, *, mark: int = 0, env_id: int | None = None, length: int = 3, **more: Any
) -> dict[str, Any]:
    """A group as environments send it. `mark`, the first token of each sequence, is what tests tell groups apart by."""
    tokens = [[mark, *range(1, length)] for _ in range(sequences)]
    masks = [[-100, *sequence[1:]] for sequence in tokens]
    scores = [float(number) for number in range(sequences)]
    whose = {} if env_id is None else {"env_id": env_id}
    return {"tokens": tokens, "masks": masks, "scores": scores, **whose, **more}


def marks(batch: list[dict[str, Any]] | None) -> list[int] | None:
    """The marks of a batch's groups, in its order."""
    return None if batch is None else [each["tokens"][0][0] for each in batch]


class Api:
    """A client that checks nothing but that an answer it needs is one."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET that is answered with 200."""
        return _json(self.http.get(path))

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a POST that is answered with 200."""
        return _json(self.http.post(path, json=body))

    def register(self, **changes: Any) -> Any:
        """As a trainer."""
        return self.post("/register", TRAINER | changes)

    def start(self, batch_size: int = 8, **changes: Any) -> None:
        """Register as a trainer and ask for a first batch, after which environments may register."""
        self.register(batch_size=batch_size, **changes)
        assert self.batch() is None

    def register_env(self, **changes: Any) -> int:
        """As an environment. Returns its id."""
        answer = self.post("/register-env", ENV | changes)
        assert answer["status"] == "success", answer
        return int(answer["env_id"])

    def send(self, *args: Any, **more: Any) -> Any:
        """Post one `group(...)`."""
        return self.post("/scored_data", group(*args, **more))

    def batch(self) -> list[dict[str, Any]] | None:
        """The next batch's groups, if there is one."""
        batch: list[dict[str, Any]] | None = self.get("/batch")["batch"]
        return batch

    def status(self) -> dict[str, int]:
        """Of the server, as far as the protocol has it."""
        answer = self.get("/status")
        return {key: answer[key] for key in ("current_step", "queue_size")}

    def ask_status_env(self, env_id: Any) -> httpx.Response:
        """Of an environment: a GET that carries a body."""
        return self.http.request("GET", "/status-env", json={"env_id": env_id})

    def status_env(self, env_id: int) -> Any:
        """The JSON of `ask_status_env`."""
        return _json(self.ask_status_env(env_id))

    def reset(self) -> None:
        """Forget everything."""
        assert self.http.get("/reset_data").status_code == 200


def _json(response: httpx.Response) -> Any:
    assert response.status_code == 200, f"{response.status_code} {response.text[:2000]}"
    return response.json()
