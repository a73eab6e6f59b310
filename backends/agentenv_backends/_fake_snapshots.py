"""Snapshots of fake slots: real copies, so that what must not be shared is not."""

from __future__ import annotations

import ast

from agentenv_backends.errors import SlotLostError


class FakeSnapshots:
    """What one fake host keeps of workspaces."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, bytes]] = {}

    def take(self, snapshot_id: str, files: dict[str, bytes]) -> None:
        """Keep a copy of `files`."""
        assert snapshot_id not in self.kept, f"snapshot id {snapshot_id} was used twice"
        self.kept[snapshot_id] = dict(files)

    def files(self, snapshot_id: str) -> dict[str, bytes]:
        """A copy of what was kept. Raises `SlotLostError` when there is no such snapshot."""
        if snapshot_id not in self.kept:
            raise SlotLostError(f"there is no snapshot {snapshot_id}")
        return dict(self.kept[snapshot_id])

    def pack(self, snapshot_id: str) -> bytes:
        """What was kept, as an archive."""
        return repr(self.files(snapshot_id)).encode()

    def unpack(self, snapshot_id: str, archive: bytes) -> None:
        """Keep what another host packed."""
        self.kept[snapshot_id] = ast.literal_eval(archive.decode())

    def drop(self, snapshot_id: str) -> None:
        """Let go of a copy, if there is one."""
        self.kept.pop(snapshot_id, None)
