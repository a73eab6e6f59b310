"""The predecessor's names for Modal: flat ones, variables of the environment, profiles in a YAML file."""

import os
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from agentenv import AgentEnvConfig
from agentenv_backends.config import ModalConfig

LIFE: dict[str, Any] = {"rollout_timeout_s": 1300, "verify_timeout_s": 60}
"""Deadlines that fit into the predecessor's lifetime of an hour."""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variables but those that a test sets."""
    for name in list(os.environ):
        if name.startswith("ATROPOS_MODAL_"):
            monkeypatch.delenv(name)
    return monkeypatch


def config_of(**values: Any) -> AgentEnvConfig:
    return AgentEnvConfig.model_validate({**LIFE, **values})


def backend_of(**flat: Any) -> ModalConfig:
    backend = config_of(tool_pool_mode="modal", **flat).backend
    assert isinstance(backend, ModalConfig)
    return backend


def test_flat_names_describe_sandboxes():
    backend = backend_of(
        modal_app_name="mine",
        modal_image="tools:1",
        modal_gpu="T4",
        modal_cpu=2.0,
        modal_memory=4096,
        modal_slots_per_sandbox=4,
        modal_min_sandboxes=2,
        modal_max_sandboxes=3,
        modal_idle_timeout=90,
        modal_max_lifetime=3600,
        modal_acquire_timeout=5.0,
        modal_execution_timeout=20.0,
        modal_secrets="one, two",
        modal_env_vars="A=1;B=x=y",
        modal_workspace_base="/work",
    )
    assert backend == ModalConfig(
        app_name="mine",
        image="tools:1",
        gpu="T4",
        cpus=2,
        sandbox_memory_mb=4096,
        slots=4,
        min_hosts=2,
        max_hosts=3,
        idle_timeout_s=90,
        max_lifetime_s=3600,
        acquire_timeout_s=5,
        execution_timeout_s=20,
        secrets=("one", "two"),
        env_vars={"A": SecretStr("1"), "B": SecretStr("x=y")},
        workspace_base="/work",
    )


def test_what_is_not_given_is_as_the_backend_has_it():
    assert backend_of() == ModalConfig()


def test_names_of_containers_say_nothing_about_sandboxes():
    assert backend_of(slots_per_container=3, acquire_timeout_s=1) == ModalConfig()


def test_two_images_are_a_contradiction():
    nested = {"type": "modal", "image": "tools:1"}
    with pytest.raises(ValidationError, match=r"modal_image='tools:2' contradicts backend\.image"):
        config_of(backend=nested, modal_image="tools:2")


def test_permitting_a_network_opens_none():
    assert backend_of(allow_network=True).allow_network is False


def test_values_of_variables_do_not_show_and_survive_being_written_and_read():
    config = config_of(tool_pool_mode="modal", modal_env_vars="KEY=hunter2")
    assert "hunter2" not in repr(config) + str(config.model_dump())
    again = AgentEnvConfig.model_validate(config.model_dump()).backend
    assert isinstance(again, ModalConfig)
    assert again.env_vars["KEY"].get_secret_value() == "hunter2"


def test_values_in_two_places_are_refused_without_being_shown():
    with pytest.raises(ValidationError, match=r"modal_env_vars and backend\.env_vars") as refused:
        config_of(backend={"type": "modal", "env_vars": {"A": "1"}}, modal_env_vars="KEY=hunter2")
    assert "hunter2" not in refused.value.errors()[0]["msg"]


def test_what_is_no_pair_is_refused_without_being_shown():
    with pytest.raises(ValidationError, match="NAME=value") as refused:
        backend_of(modal_env_vars="hunter2")
    assert "modal_env_vars: write it as" in str(refused.value)


def test_variables_of_the_environment_count_where_nothing_else_does(surroundings):
    surroundings.setenv("ATROPOS_MODAL_IMAGE", "of-the-environment:1")
    surroundings.setenv("ATROPOS_MODAL_MEMORY", "8192")
    assert backend_of().image == "of-the-environment:1"
    chosen = backend_of(modal_image="chosen:1")
    assert (chosen.image, chosen.sandbox_memory_mb) == ("chosen:1", 8192)


def test_profiles_come_from_variables(surroundings):
    surroundings.setenv("ATROPOS_MODAL_PROFILES", "default,big-gpu")
    surroundings.setenv("ATROPOS_MODAL_IMAGE", "all:1")
    surroundings.setenv("ATROPOS_MODAL_PROFILE_BIG_GPU_GPU", "H100")
    surroundings.setenv("ATROPOS_MODAL_PROFILE_BIG_GPU_SLOTS_PER_SANDBOX", "1")
    profiles = backend_of().of_profiles()
    assert list(profiles) == ["default", "big-gpu"]
    assert (profiles["big-gpu"].gpu, profiles["big-gpu"].slots) == ("H100", 1)
    assert {profile.image for profile in profiles.values()} == {"all:1"}
    assert profiles["default"].gpu is None


def test_profiles_come_from_a_file(surroundings, tmp_path):
    file = tmp_path / "profiles.yaml"
    file.write_text(
        "profiles: {default: {cpu: 2}, big: {memory: 16384, secrets: [a, b], env_vars: {K: hunter2}}}"
    )
    surroundings.setenv("ATROPOS_MODAL_PROFILES_FILE", str(file))
    backend = backend_of()
    big = backend.of_profiles()["big"]
    assert (backend.cpus, big.cpus, big.sandbox_memory_mb, big.secrets) == (2, 2, 16384, ("a", "b"))
    assert "hunter2" not in repr(backend) + str(backend.model_dump())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("profiles: {big: {memry: 1}}", "memry"),
        ("profiles: {big: 1}", "profiles: {name"),
        ("[", "cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(surroundings, tmp_path, text, named):
    file = tmp_path / "profiles.yaml"
    file.write_text(text)
    surroundings.setenv("ATROPOS_MODAL_PROFILES_FILE", str(file))
    with pytest.raises(ValidationError, match="ATROPOS_MODAL_PROFILES_FILE") as refused:
        backend_of()
    assert named in str(refused.value)


def test_a_missing_file_is_named(surroundings):
    surroundings.setenv("ATROPOS_MODAL_PROFILES_FILE", "/nowhere.yaml")
    with pytest.raises(ValidationError, match="nowhere"):
        backend_of()


def test_a_lifetime_that_ends_under_a_rollout_is_refused():
    with pytest.raises(ValidationError, match=r"max_lifetime_s=3600 must be more than the 4860 s"):
        AgentEnvConfig(tool_pool_mode="modal", modal_max_lifetime=3600)


def test_sandboxes_are_told_how_long_a_rollout_may_take():
    def needed_s(**backend: Any) -> float:
        config = config_of(backend={"type": "modal", **backend})
        return config.lasting_backend.pool_settings().limits.trajectory_life_s

    assert needed_s() == 1300 + 2 * 60 + 60
    assert needed_s(trajectory_life_s=100) == 100


def test_waiting_for_a_slot_has_the_deadline_that_was_set():
    assert config_of(tool_pool_mode="modal", modal_acquire_timeout=7).slot_wait_s == 7
