"""What a container's own control group tells, in both versions, from files that look like the kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentenv_backends.sandboxd import cgroups
from agentenv_backends.sandboxd.host_limits import HostMemory, MemoryWatch, limits_of_host

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 64 << 20


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    version: int = request.param
    return version


@pytest.fixture
def group(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A group's folder with a memory limit and nothing killed yet."""
    monkeypatch.setattr(cgroups, "folders_of", lambda _: [(version, str(tmp_path))])
    if version == 1:
        (tmp_path / "memory.limit_in_bytes").write_text(f"{LIMIT}\n")
        (tmp_path / "memory.max_usage_in_bytes").write_text("1000\n")
        (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    else:
        (tmp_path / "memory.max").write_text(f"{LIMIT}\n")
        (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pids.max").write_text("max\n")
    _kills(tmp_path, version, 0)
    return tmp_path


def _kills(group: Path, version: int, number: int) -> None:
    if version == 1:
        text = f"oom_kill_disable 0\nunder_oom 0\noom_kill {number}\n"
        (group / "memory.oom_control").write_text(text)
    else:
        text = f"low 0\nhigh 0\nmax 9\noom {number}\noom_kill {number}\noom_group_kill 0\n"
        (group / "memory.events").write_text(text)


def test_each_watch_hears_of_a_kill_once(group: Path, version: int) -> None:
    host = HostMemory.find()
    assert host is not None
    assert host.limit_bytes == LIMIT
    first, second = MemoryWatch(host, alone=False), MemoryWatch(host, alone=False)
    assert not first.note_oom_kills()
    _kills(group, version, 2)
    assert [first.note_oom_kills(), first.note_oom_kills()] == [True, False]
    assert second.note_oom_kills()
    assert not MemoryWatch(host, alone=False).note_oom_kills()


def test_only_a_slot_that_is_alone_can_have_used_up_the_limit(group: Path, version: int) -> None:
    host = HostMemory.find()
    assert host is not None
    alone, one_of_several = MemoryWatch(host, alone=True), MemoryWatch(host, alone=False)
    assert not alone.reached_memory_limit()
    (group / "memory.max_usage_in_bytes").write_text(f"{LIMIT - 4096}\n")
    _kills(group, version, 1)
    assert alone.reached_memory_limit()
    assert not one_of_several.reached_memory_limit()


def test_without_a_limit_there_is_nothing_to_watch(group: Path, version: int) -> None:
    for name in ("memory.limit_in_bytes", "memory.max"):
        (group / name).write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert HostMemory.find() is None
    assert limits_of_host() == []


def test_limits_of_the_host_are_those_that_are_set(group: Path, version: int) -> None:
    assert limits_of_host() == ["memory"]
    (group / "pids.max").write_text("100\n")
    (group / ("cpu.cfs_quota_us" if version == 1 else "cpu.max")).write_text("50000 100000\n")
    assert limits_of_host() == ["pids", "memory", "cpu"]


def test_where_nothing_is_mounted_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "folders_of", lambda _: [(1, "/nowhere"), (2, "/nowhere")])
    assert HostMemory.find() is None
    assert limits_of_host() == []
