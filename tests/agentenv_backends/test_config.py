"""Backend configs say what is wrong with them, and build without starting anything."""
# mypy: disable-error-code="no-untyped-call, union-attr"

import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from agentenv_backends.config import BackendConfig, LocalConfig, parse_backend_config
from agentenv_backends.errors import BackendConfigError


def test_a_mapping_becomes_the_config_its_type_names():
    config = parse_backend_config({"type": "local", "slots": 8, "max_hosts": 3})
    assert config == LocalConfig(slots=8, max_hosts=3)


def test_local_is_what_one_gets_without_asking():
    assert parse_backend_config({}) == LocalConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"type": "submarine"},
            "type 'submarine' is not offered; there is: docker, local, modal, nomad",
        ),
        ({"slotz": 8}, r"backend\.slotz = 8: Extra inputs"),
        ({"slots": 0}, r"backend\.slots = 0: .*greater than or equal to 1"),
        ({"min_hosts": 3}, "min_hosts is 3, above max_hosts, which is 1"),
        ({"isolation": "chroot"}, r"backend\.isolation = 'chroot': .*'bubblewrap' or 'none'"),
        ({"isolation": "none"}, "cannot keep commands from the network"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(values, message):
    with pytest.raises(BackendConfigError, match=message):
        parse_backend_config(values)


def test_no_isolation_is_possible_when_its_price_is_accepted():
    assert LocalConfig(isolation="none", allow_network=True).isolation == "none"


def test_it_can_be_a_field_of_another_config():
    class Outer(BaseModel):
        backend: BackendConfig = LocalConfig()

    assert Outer.model_validate({"backend": {"slots": 2}}).backend.slots == 2
    with pytest.raises(
        ValidationError, match="'submarine' is not offered; there is: docker, local, modal, nomad"
    ):
        Outer.model_validate({"backend": {"type": "submarine"}})


def test_every_field_is_documented():
    for name, field in LocalConfig.model_fields.items():
        assert field.description, name


def test_reading_configs_imports_no_backend():
    code = (
        "import sys, agentenv_backends.config; "
        "print([m for m in sys.modules if m.startswith('agentenv_backends')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert "agentenv_backends.local" not in done.stdout
    assert "agentenv_backends.pool" not in done.stdout
