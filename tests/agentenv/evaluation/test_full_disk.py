"""A sweep whose disk becomes full: it ends with the reason, and goes on when there is room, with nothing lost."""

from typing import Any

import pytest

from tests.agentenv.evaluation.sweeps import results
from tests.agentenv.evaluation.test_environments import HERE, run, write
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow


def test_a_full_disk_ends_a_sweep_with_its_reason_and_what_is_written_stays(tmp_path, capsys):
    noisy: dict[str, Any] = {"environment": f"{HERE}:SweptEnv", "count": 40, "env": {"noise": 8000}}
    file = write(tmp_path, tasks={"echo": noisy}, attempts=2, concurrency=4)
    with small_disk(tmp_path / "disk", "800k") as disk:
        directory = str(disk.path / "run")
        assert run(file, "--run-dir", directory) == 1
        assert "disk is full" in capsys.readouterr().err
        for _ in range(2):
            kept = results(disk.path / "run")
            assert 0 < len(kept) < 80
            assert run(file, "--run-dir", directory) == 1, "it stays full"
            assert "full" in " ".join(capsys.readouterr().err.split())
        disk.resize("64m")
        kept = results(disk.path / "run")
        assert run(file, "--run-dir", directory) == 0
        whole = results(disk.path / "run")
        assert "80/80 samples" in capsys.readouterr().out
    assert {key: whole[key] for key in kept} == kept
    assert run(file, "--run-dir", str(tmp_path / "undisturbed")) == 0
    assert results(tmp_path / "undisturbed") == whole
