import pytest

from agentenv.tasks.errors import TaskUnsupportedError
from agentenv.tasks.templates import (
    for_saving,
    is_sensitive,
    masked,
    resolved,
    secrets_of,
    without_secrets,
)


def test_only_a_value_that_is_one_template_is_resolved():
    values = {
        "A": "${X}",
        "B": "${Y:-none}",
        "C": "${X} and more",
        "D": "${X:-other}",
        "E": "${Y:-}",
    }
    assert resolved(values, {"X": "x"}, "env") == {
        "A": "x", "B": "none", "C": "${X} and more", "D": "x", "E": "",
    }  # fmt: skip


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(TaskUnsupportedError, match=r"verifier\.env\.A is \$\{X\}"):
        resolved({"A": "${X}"}, {}, "verifier.env")


@pytest.mark.parametrize(
    "name", ["API_KEY", "my_secret", "AuthHeader", "TOKEN", "GITHUB_TOKEN", "password1"]
)
def test_names_of_secrets(name):
    assert is_sensitive(name)


@pytest.mark.parametrize("name", ["MAX_TOKENS", "HOME", "PATH"])
def test_names_of_other_things(name):
    assert not is_sensitive(name)


def test_what_is_saved_holds_no_secret():
    values = {
        "API_KEY": "${API_KEY}", "PLAIN": "plain", "DB_PASSWORD": "hunter2hunter2", "HOST_TOKEN": "abcdefghijk",
        "X_SECRET": "${X:-fallbacksecret}", "SHORT_KEY": "abc",
    }  # fmt: skip
    assert for_saving(values, {"HOST_TOKEN": "abcdefghijk"}) == {
        "API_KEY": "${API_KEY}", "PLAIN": "plain", "DB_PASSWORD": "hunt****er2", "HOST_TOKEN": "${HOST_TOKEN}",
        "X_SECRET": "${X:-fall****ret}", "SHORT_KEY": "****",
    }  # fmt: skip


def test_secrets_are_taken_out_of_texts_longest_first():
    secrets = secrets_of(
        {"A_KEY": "abcdefghij", "B_KEY": "abcdefghijklm", "PATH": "/usr/bin", "C_KEY": "x"}
    )
    assert (
        without_secrets("abcdefghijklm /usr/bin x", secrets)
        == f"{masked('abcdefghijklm')} /usr/bin x"
    )
