"""`agentenv api`: what is refused before it serves. See tests/agentenv/api for what it does."""

from pathlib import Path

import pytest

from agentenv.cli.main import main


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch):
    for name in ("TRAINER_TOKEN", "ENVIRONMENT_TOKEN", "READER_TOKEN", "HOST", "PORT"):
        monkeypatch.delenv(f"TRAJECTORY_SERVER_{name}", raising=False)


def test_an_open_address_without_tokens_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["api", "--host", "0.0.0.0"]) == 2
    assert "without tokens" in capsys.readouterr().err


def test_one_token_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "token").write_text("sesame\n")
    assert main(["api", "--trainer-token-file", str(tmp_path / "token")]) == 2
    assert "one for the environments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lease-s", "0"], "lease_s=0.0: must be"),
        (["--max-staleness", "-1"], "max_staleness=-1: must be"),
        (["--max-queue-bytes", "0"], "max_queue_bytes=0: must be"),
        (["--port", "70000"], "port 70000"),
        (["--reader-token-file", "nope"], "--reader-token-file nope: cannot be read"),
        (["--data", "/dev/null/x"], "cannot be had"),
        (["--lease-s", "soon"], "--lease-s"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["api", "--port", "0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_says_what_happens_without_a_database(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["api", "--help"])
    shown = capsys.readouterr().out
    for part in ("--data", "temporary", "127.0.0.1", "_TRAINER_TOKEN", "--max-staleness"):
        assert part in shown
