"""What an engine says of itself, read as protections."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from agentenv_backends._engine_findings import assess_engine
from agentenv_backends.doctor import InForce, examine_engine

VERSION = {"Version": "20.10.24", "ApiVersion": "1.41"}
INFO: dict[str, Any] = {
    "Driver": "overlay2",
    "OSType": "linux",
    "CgroupVersion": "1",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SecurityOptions": ["name=seccomp,profile=default", "name=apparmor", "name=userns"],
}


def test_an_engine_that_offers_everything_lacks_nothing() -> None:
    found = assess_engine("the engine", VERSION, INFO)
    assert {protection.in_force for protection in found} == {InForce.YES}
    assert "version 20.10.24, API 1.41, linux, cgroup v1" in found[0].means
    assert "overlay2" in " ".join(protection.means for protection in found)


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ({"MemoryLimit": False}, "memory is limited"),
        ({"SwapLimit": False}, "swap is limited"),
        ({"PidsLimit": False}, "processes are limited"),
        ({"CpuCfsQuota": False}, "processor time is limited"),
        (
            {"SecurityOptions": ["name=apparmor", "name=rootless"]},
            "dangerous system calls are refused",
        ),
        (
            {"SecurityOptions": ["name=seccomp", "name=rootless"]},
            "a profile of the machine confines containers",
        ),
        (
            {"SecurityOptions": ["name=seccomp", "name=selinux"]},
            "root of a container is not root of the machine",
        ),
    ],
)
def test_what_an_engine_lacks_is_told_with_the_way_out(answer: dict[str, Any], lost: str) -> None:
    found = assess_engine("the engine", VERSION, INFO | answer)
    missing = [protection for protection in found if protection.in_force is not InForce.YES]
    assert [protection.name for protection in missing] == [lost]
    assert missing[0].way_out


async def test_where_there_is_no_engine_there_is_one_finding_with_the_reason() -> None:
    (only,) = await examine_engine("unix:///nowhere/docker.sock")
    assert only.in_force is InForce.NO
    assert only.means
    assert only.way_out


async def test_without_the_client_library_the_finding_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("agentenv_backends.docker.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiodocker", None)
    (only,) = await examine_engine()
    assert "pip install 'agentenv[docker]'" in only.means
