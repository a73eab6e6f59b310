"""A policy in this process: a causal language model of Transformers, batched across trajectories.
Needs `torch`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from agentenv.errors import (
    ConfigError,
    ContextLengthError,
    NotStartedError,
    PolicyError,
    PolicyRequestError,
)
from agentenv.policy.base import ChatCompletion
from agentenv.policy.transformers_batch import Row
from agentenv.policy.transformers_worker import BatchStats, BatchWorker, Generation, WeightUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentenv.policy.base import Completion, SamplingParams
    from agentenv.policy.config import APIServerConfig


class TransformersPolicy:
    """A `PolicyClient` over a model in this process, of any family that keeps plain keys and
    values.

    One thread owns the model; the event loop is never blocked. Requests of all trajectories share
    forward passes, up to `max_batch_size` rows; they join and leave between steps. A completion
    also ends at the model's own end-of-sequence tokens, as engines do. A cancelled request leaves
    the batch at the next step.

    `logprobs` are those of the distribution that was sampled from: after temperature and top_p, and
    so the model's own at temperature 1 and top_p 1. The ids sampled for a given seed do not depend
    on what shares the batch, as far as floating-point noise allows. All rows sampled from the same
    weights: `update_weights` lets the batch run empty first.
    """

    returns_tokens = True
    takes_images = False

    def __init__(
        self,
        load: Callable[[], Any],
        *,
        max_batch_size: int = 64,
        torch_threads: int = 1,
        policy_version: str | None = None,
        load_tokenizer: Callable[[], Any] | None = None,
    ) -> None:
        self._load = load
        self._load_tokenizer = load_tokenizer
        self._max_batch_size = max_batch_size
        self._torch_threads = torch_threads
        self._version = policy_version
        self._model: Any = None
        self._tokenizer: Any = None
        self._worker: BatchWorker | None = None

    @classmethod
    def from_config(cls, config: APIServerConfig) -> Self:
        """The policy of a config with `server_type: transformers`. The model is loaded by
        `start`.
        """
        dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype, None)
        if not isinstance(dtype, str | torch.dtype):
            raise ConfigError(
                f"dtype {config.dtype!r} is none of torch; use auto, float32 or bfloat16"
            )
        return cls(
            lambda: load_model(config.model_name, dtype, config.device),
            max_batch_size=config.max_batch_size,
            torch_threads=config.torch_threads,
            load_tokenizer=lambda: _load_tokenizer(config.tokenizer),
        )

    async def start(self) -> None:
        """Load the model. Raises `PolicyError` with the reason if that fails."""
        if self._worker is not None:
            return
        try:
            self._model = await asyncio.to_thread(self._load)
        except (OSError, ValueError, RuntimeError) as error:
            raise PolicyError(f"the model could not be loaded: {error}") from error
        self._worker = BatchWorker(
            self._model, self._max_batch_size, self._torch_threads, self._version
        )
        self._worker.start()

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, trajectory_id: str
    ) -> Completion:
        """See `PolicyClient.generate`. `params.extra` must be empty: there is no engine behind
        this.
        """
        del trajectory_id
        worker = self._running()
        row = self._row(tuple(prompt_ids), params)
        loop = asyncio.get_running_loop()
        job = Generation(loop, loop.create_future(), row)
        worker.submit(job)
        try:
            completion: Completion = await job.answer
        finally:
            row.cancelled = True  # no effect on a row that is done
        return completion

    async def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams, *, trajectory_id: str
    ) -> ChatCompletion:
        """See `PolicyClient.chat`. Renders by the tokenizer's own chat template."""
        if self._tokenizer is None:
            if self._load_tokenizer is None:
                raise PolicyRequestError("a policy without a tokenizer cannot chat")
            self._tokenizer = await asyncio.to_thread(self._load_tokenizer)
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        done = await self.generate(prompt, params, trajectory_id=trajectory_id)
        reply = self._tokenizer.decode(list(done.token_ids), skip_special_tokens=True)
        return ChatCompletion(reply, done.finish_reason, len(prompt), len(done.token_ids))

    async def update_weights(self, weights: Mapping[str, Any] | Path | str, version: str) -> None:
        """Replace the weights and name them `version`, which completions from then on carry.

        `weights` is a state dict, or a safetensors file or a directory of them. Completions that
        have begun end first, with the old weights; the others wait and get the new ones. Raises
        `PolicyError`, with the old weights still in place, when names or shapes differ.
        """
        worker = self._running()
        loop = asyncio.get_running_loop()
        weights = Path(weights) if isinstance(weights, str) else weights
        job = WeightUpdate(loop, loop.create_future(), weights, version)
        worker.submit(job)
        await job.answer

    def raise_concurrency(self, requests: int) -> None:
        """Does nothing: any number of requests may be under way; those beyond the batch wait their
        turn.
        """

    def version(self) -> str | None:
        """The name of the weights that sample now."""
        return self._running().version

    def stats(self) -> BatchStats:
        """Counters and gauges now."""
        return self._running().stats()

    async def close(self) -> None:
        """End the worker after its present step. Requests under way fail with `PolicyError`.
        Idempotent.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)
        self._model = None

    def _running(self) -> BatchWorker:
        if self._worker is None:
            raise NotStartedError("the policy was used before its start()")
        return self._worker

    def _row(self, prompt: tuple[int, ...], params: SamplingParams) -> Row:
        config = self._model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        _check_request(prompt, params, config.vocab_size)
        if context is not None and len(prompt) >= context:
            raise ContextLengthError(f"the prompt has {len(prompt)} tokens, the context {context}")
        budget = (
            params.max_tokens if context is None else min(params.max_tokens, context - len(prompt))
        )
        return Row(prompt, params, self._end_ids() | frozenset(params.stop_token_ids), budget)

    def _end_ids(self) -> frozenset[int]:
        own = getattr(self._model.generation_config, "eos_token_id", None)
        if own is None:
            return frozenset()
        return frozenset([own] if isinstance(own, int) else own)


def _check_request(prompt: tuple[int, ...], params: SamplingParams, vocab_size: int) -> None:
    if not prompt:
        raise PolicyRequestError("the prompt is empty")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise PolicyRequestError(f"the prompt holds ids outside the vocabulary of {vocab_size}")
    if params.max_tokens < 1:
        raise PolicyRequestError(f"max_tokens must be at least 1, not {params.max_tokens}")
    if not (0 <= params.temperature < float("inf") and 0 < params.top_p <= 1):
        raise PolicyRequestError(
            f"temperature {params.temperature} or top_p {params.top_p} is out of range"
        )
    if params.extra:
        raise PolicyRequestError(f"in-process sampling has no {sorted(params.extra)}")


def load_model(name: str, dtype: Any, device: str) -> Any:
    """A causal language model, ready to sample. Raises `OSError` or `ValueError` when it cannot be had."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import, and this runs off the loop
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()  # it would draw over the run's own display
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to import, and this runs off the loop

    return AutoTokenizer.from_pretrained(name)
