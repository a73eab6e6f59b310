"""`agentenv cleanup`: what it shows, and what its exit status says."""

from __future__ import annotations

import pytest

from agentenv.cli import cleanup as command
from agentenv.cli.main import main
from agentenv_backends.cleanup import Swept
from agentenv_backends.host import Leftover


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def _finds(monkeypatch: pytest.MonkeyPatch, *swept: Swept) -> list[tuple[tuple[str, ...], bool]]:
    asked = []

    async def clean_up(
        backends: tuple[str, ...] = (), *, remove: bool = True, images: bool = False
    ) -> list[Swept]:
        asked.append((backends, remove))
        return list(swept)

    monkeypatch.setattr(command, "clean_up", clean_up)
    return asked


def _left(*, removed: bool) -> Swept:
    return Swept(
        "docker", (Leftover("container", "agentenv-ab-\x1b[31mh1", "run ab, process 7", removed),)
    )


def test_it_shows_what_was_left_by_whom_and_that_it_is_gone(monkeypatch, capsys):
    asked = _finds(monkeypatch, Swept("local"), _left(removed=True))
    assert main(["cleanup"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "docker",
        "container",
        "run ab, process 7",
        "removed",
        "local: nothing was left behind",
    ):
        assert part in shown
    assert "\x1b[31mh1" not in shown
    assert asked == [((), True)]


def test_what_stays_is_a_failure_unless_it_was_only_looked_for(monkeypatch, capsys):
    asked = _finds(monkeypatch, _left(removed=False))
    assert main(["cleanup", "--backend", "docker"]) == 1
    assert "stays" in capsys.readouterr().out
    assert main(["cleanup", "--dry-run"]) == 0
    assert "found" in capsys.readouterr().out
    assert asked == [(("docker",), True), ((), False)]


def test_a_backend_that_is_not_there_fails_only_who_named_it(monkeypatch, capsys):
    _finds(monkeypatch, Swept("local"), Swept("docker", skipped="there is no engine"))
    assert main(["cleanup"]) == 0
    assert "docker: skipped, there is no engine" in capsys.readouterr().out
    assert main(["cleanup", "--backend", "docker"]) == 1


def test_unknown_backends_are_refused(capsys):
    assert main(["cleanup", "--backend", "kubernetes"]) == 2
    assert "kubernetes" in capsys.readouterr().err
