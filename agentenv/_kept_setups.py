"""Prepared workspaces that several groups use, of this run or another: `AgentEnv.workspace_key`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from agentenv._shared_setup import Prepared
from agentenv.errors import AgentEnvError
from agentenv.run.masking import mask_secrets

if TYPE_CHECKING:
    from agentenv.env import AgentEnv
    from agentenv.types import Item
    from agentenv_backends.base import Backend

logger = logging.getLogger(__name__)


def full_key(env: AgentEnv[Any], item: Item) -> str | None:
    """The environment's key for an item, made one that no other environment's can equal; None: no key.

    Raises `AgentEnvError` for what is no key.
    """
    key = env.workspace_key(item)
    if key is None:
        return None
    if not isinstance(key, str) or not key:
        raise AgentEnvError(
            f"workspace_key must return a text that is not empty, or None, not {key!r}"
        )
    whole = json.dumps([_full_name(type(env)), key])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def _full_name(env_class: type) -> str:
    """Where a class is defined; every program has a module `__main__`."""
    name = f"{env_class.__module__}:{env_class.__qualname__}"
    if env_class.__module__ == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        name = f"{Path(file).resolve() if file else ''}:{name}"
    return name


class KeptSetups:
    """The set-ups of one environment by key. Equal ones take turns, so that the others find what the first made."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def under(self, key: str) -> KeptSetup:
        """The set-up that goes by this key."""
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        return KeptSetup(self._backend, key, turn)


class KeptSetup:
    """One of them, for a group. Whatever goes wrong here means that there is none."""

    def __init__(self, backend: Backend, key: str, turn: asyncio.Lock) -> None:
        self.turn = turn
        """Held while the set-up is looked for and made."""
        self._backend = backend
        self._key = key

    async def recall(self) -> Prepared | None:
        """What an equal set-up left; its snapshot is to be dropped. None: it has to be made."""
        known = await self._backend.recall_snapshot(self._key)
        if known is None:
            return None
        try:
            meta = json.loads(known.note)
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            await self._backend.drop_snapshot(known.snapshot)
            return None
        return Prepared(meta, known.snapshot)

    async def remember(self, prepared: Prepared) -> None:
        """Leave what a set-up made for others, if it can be kept."""
        if prepared.snapshot is None:
            return
        if reason := _why_not(prepared.meta):
            logger.warning("a prepared workspace is not kept for other groups: %s", reason)
            return
        note = json.dumps(prepared.meta).encode()
        await self._backend.remember_snapshot(self._key, prepared.snapshot, note)


def _why_not(meta: dict[str, Any]) -> str:
    """Why what a set-up returned cannot be kept; empty when it can."""
    try:
        survives = json.loads(json.dumps(meta)) == meta
    except (TypeError, ValueError, RecursionError):
        survives = False
    if not survives:
        return "what setup_trajectory_workspace returned does not survive JSON"
    if mask_secrets(meta) != meta:
        return "what setup_trajectory_workspace returned has entries named like secrets"
    return ""
