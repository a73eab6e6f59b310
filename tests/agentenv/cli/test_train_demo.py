import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from agentenv.cli.main import main
from tests.agentenv.fake_env import EchoEnv

pytestmark = pytest.mark.torch
ECHO = f"{EchoEnv.__module__}:EchoEnv"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (None, [], "cannot be read"),
        ("environment: shell_task", [], "is not known; did you mean"),
        ("environment: shell_tasks\nenv: {group_sise: 8}", [], "group_sise"),
        ("environment: shell_tasks", ["--steps", "0"], "--steps 0: must be at least 1"),
        (f"environment: {ECHO}", [], "comes with no policy to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_started(
    text, options, said, tmp_path, capsys
):
    path = tmp_path / "demo.yaml"
    if text is not None:
        path.write_text(text)

    status = main(["train-demo", str(path), "--run-dir", str(tmp_path / "run"), *options])

    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
