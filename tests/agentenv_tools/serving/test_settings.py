"""Where services listen, and by which names they may be reached."""

import pytest

from agentenv_tools import ToolConfigError
from agentenv_tools.serving import ServeSettings


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.1.2.3", "my-machine", "[::]"])
def test_an_address_that_others_reach_needs_a_token(host: str):
    with pytest.raises(ToolConfigError, match="without a token"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token="x").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_none(host: str):
    assert ServeSettings(host=host).token is None


@pytest.mark.parametrize("token", ["", "two words", "ümlaut", "line\n"])
def test_a_token_no_header_can_carry_is_refused(token: str):
    with pytest.raises(ToolConfigError, match="printable ASCII"):
        ServeSettings(token=token)


def test_a_token_is_not_shown():
    assert "hunter2" not in repr(ServeSettings(token="hunter2"))


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        ("localhost:9002", True),
        ("LOCALHOST", True),
        ("127.0.0.1:9002", True),
        ("[::1]:9002", True),
        ("192.168.1.5", True),
        ("tools.internal:1", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("*", False),
    ],
)
def test_only_names_that_were_allowed_and_bare_addresses_are_admitted(header: str, admitted: bool):
    assert ServeSettings(allowed_hosts=("Tools.Internal",)).admits_host(header) is admitted


def test_any_name_can_be_allowed():
    assert ServeSettings(token="x", allowed_hosts=("*",)).admits_host("whoever.example")


def test_the_environment_fills_in_what_is_not_given():
    environ = {"X_HOST": "0.0.0.0", "X_PORT": "80", "X_TOKEN": "t", "X_ALLOWED_HOSTS": "a, b"}
    found = ServeSettings.from_environment("X_", environ, port=81)
    assert (found.host, found.port, found.token) == ("0.0.0.0", 81, "t")
    assert found.allowed_hosts == ("a", "b")


@pytest.mark.parametrize("environ", [{"X_PORT": "many"}, {"X_PORT": "70000"}])
def test_a_port_that_is_none_is_refused(environ: dict[str, str]):
    with pytest.raises(ToolConfigError, match=r"(?i)port"):
        ServeSettings.from_environment("X_", environ)
