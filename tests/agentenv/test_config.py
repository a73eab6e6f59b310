"""Names and defaults of the predecessor, the flat backend names, and what is refused at start."""

import pytest
from pydantic import ValidationError

from agentenv.config import AgentEnvConfig

DOCUMENTED = {
    "allow_network": True, "require_sandbox": False, "require_stateful_sandbox": False, "tool_batch_window_ms": 20,
    "tool_max_batch_size": 200, "nomad_address": "http://localhost:4646", "sandbox_job_id": "atropos-sandbox-agent-env",
    "sandbox_image": "atropos-sandbox:local", "slots_per_container": 10, "min_containers": 1, "max_containers": 10,
    "privileged": False, "acquire_timeout_s": 30.0, "purge_job_on_start": False, "purge_job_on_shutdown": True,
    "driver": "docker", "singularity_image": None, "modal_app_name": "atropos-sandbox", "modal_image": "python:3.11",
    "modal_gpu": None, "modal_cpu": 1.0, "modal_memory": 2048, "modal_slots_per_sandbox": 10, "modal_min_sandboxes": 1,
    "modal_max_sandboxes": 5, "modal_idle_timeout": 120, "modal_max_lifetime": 3600, "modal_acquire_timeout": 60.0,
    "modal_execution_timeout": 30.0, "modal_secrets": "", "modal_env_vars": "", "modal_workspace_base": "/data",
    "agent_max_steps": 50, "agent_temperature": 0.7, "agent_max_tokens": None, "agent_tool_delay_s": 0.0,
    "enabled_toolsets": ["default"], "disabled_toolsets": [], "tool_server_url": None, "tool_server_token": None,
    "group_size": 4, "max_num_workers": -1, "max_num_workers_per_node": 8, "max_eval_workers": 16,
    "steps_per_eval": 100, "max_token_length": 2048, "eval_limit_ratio": 0.5, "inference_weight": 1.0,
    "batch_size": -1, "max_batches_offpolicy": 3, "rollout_server_url": "http://localhost:8000", "total_steps": 1000,
    "wandb_name": None, "num_rollouts_to_keep": 32, "ensure_scores_are_not_same": True, "include_messages": False,
    "worker_timeout": 600, "thinking_mode": False,
}  # fmt: skip


@pytest.mark.parametrize(("name", "default"), DOCUMENTED.items())
def test_a_documented_default_holds(name: str, default: object):
    assert getattr(AgentEnvConfig(), name) == default


def test_flat_names_reach_the_backend():
    config = AgentEnvConfig(
        slots_per_container=3,
        min_containers=2,
        max_containers=4,
        acquire_timeout_s=9,
        allow_network=False,
    )
    backend = config.backend
    assert (backend.slots, backend.min_hosts, backend.max_hosts) == (3, 2, 4)
    assert backend.acquire_timeout_s == 9
    assert backend.allow_network is False


def test_permitting_a_network_opens_none():
    assert (
        AgentEnvConfig(allow_network=True).backend.allow_network
        is AgentEnvConfig().backend.allow_network
        is False
    )


def test_a_config_survives_being_written_and_read():
    config = AgentEnvConfig.model_validate(
        {"backend": {"type": "local", "slots": 5}, "slots_per_container": 5}
    )
    again = AgentEnvConfig.model_validate(config.model_dump())
    assert again.backend == config.backend


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"backend": {"type": "local", "slots": 5}, "slots_per_container": 7},
            "slots_per_container=7",
        ),
        (
            {"backend": {"type": "local", "isolation": "none"}, "require_sandbox": True},
            "require_sandbox",
        ),
        (
            {
                "backend": {"type": "local", "isolation": "none", "allow_network": True},
                "require_stateful_sandbox": True,
            },
            "require_stateful_sandbox=True contradicts",
        ),
        ({"backend": {"type": "local"}, "tool_pool_mode": "modal"}, "tool_pool_mode"),
        ({"backend": {"type": "local", "slotz": 5}}, "slotz"),
        ({"backend": {"type": "lokal"}}, "lokal"),
        ({"group_size": 0}, "group_size"),
        ({"group_sise": 2}, "group_sise"),
        ({"agent_temperature": float("nan")}, "agent_temperature"),
        ({"turn_timeout_s": 10}, "turn_timeout_s"),
        ({"rollout_timeout_s": 1200, "turn_timeout_s": 1200}, "rollout_timeout_s"),
        ({"group_timeout_s": 60}, "group_timeout_s"),
        ({"min_containers": 3, "max_containers": 2}, "min_containers"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, object], named: str):
    with pytest.raises(ValidationError, match=named):
        AgentEnvConfig.model_validate(values)


def test_a_slot_may_be_waited_for_as_long_as_the_group_unless_a_deadline_was_set():
    assert AgentEnvConfig().slot_wait_s == AgentEnvConfig().group_timeout_s
    assert AgentEnvConfig(acquire_timeout_s=5).slot_wait_s == 5


def test_a_secret_does_not_show():
    config = AgentEnvConfig.model_validate({"tool_server_token": "hunter2"})
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config.model_dump())
