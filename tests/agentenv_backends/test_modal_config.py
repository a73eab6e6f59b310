"""What a Modal config refuses, and what becomes of profiles."""

import pytest

from agentenv_backends.config import ModalConfig, parse_backend_config
from agentenv_backends.errors import BackendConfigError


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"idle_timeout_s": 30}, "idle_timeout_s is 30, less than launch_timeout_s"),
        ({"max_lifetime_s": 100, "idle_timeout_s": 100}, "more than idle_timeout_s"),
        ({"max_lifetime_s": 200, "lease_s": 300}, "more than lease_s"),
        ({"max_lifetime_s": 200, "trajectory_life_s": 200}, "more than trajectory_life_s"),
        ({"max_lifetime_s": 100_000}, "max_lifetime_s"),
        ({"cpus": 2, "max_cpus": 1}, "max_cpus is 1, less than cpus"),
        ({"max_sandbox_memory_mb": 1024}, "less than sandbox_memory_mb"),
        ({"run_as_root": True}, "run_as_root true needs slots 1"),
        ({"workspace_base": "data"}, "workspace_base"),
        ({"env_vars": {"A B": "x"}}, "env_vars"),
        ({"profiles": {"default": {}}}, "`default` is this config itself"),
        ({"profiles": {"big": {"app_name": "x"}}}, "app_name is the same for all"),
        ({"profiles": {"big": {"gpus": 1}}}, r"profiles.big: gpus"),
        ({"profiles": {"big": {"run_as_root": True}}}, "profiles.big"),
        ({"imag": "x"}, "imag"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, object], named: str):
    with pytest.raises(BackendConfigError, match=named):
        parse_backend_config({"type": "modal", **values})


def test_a_profile_is_the_config_with_changes():
    config = ModalConfig(slots=4, image="a:1", profiles={"gpu": {"gpu": "A100", "slots": 1}})
    default, gpu = config.of_profiles().values()
    assert (default.slots, default.gpu, gpu.slots, gpu.gpu) == (4, None, 1, "A100")
    assert {default.image, gpu.image} == {"a:1"}
    assert not default.profiles


def test_secrets_of_a_profile_do_not_show():
    config = ModalConfig(profiles={"big": {"env_vars": {"KEY": "hunter2"}}})
    assert "hunter2" not in repr(config) + str(config.model_dump()) + config.model_dump_json()
    assert config.of_profiles()["big"].env_vars["KEY"].get_secret_value() == "hunter2"
