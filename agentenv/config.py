"""The configuration of an environment: names and defaults as Atropos and its agent environments had them.

What is ours: `backend` (nested, see `agentenv_backends.config`), `renderer`, `seed`, and the deadlines. Flat names of
the predecessor that speak of a backend are accepted and mapped onto `backend` in one place, `compat.py`.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from agentenv.compat import backend_from_flat_names
from agentenv.control.curriculum import CurriculumConfig
from agentenv.control.over_provision import OverProvision
from agentenv.control.staleness import StalenessLimit
from agentenv_backends.config import BackendConfig  # noqa: TC001 - pydantic reads it
from agentenv_tools.external.mcp_config import McpServerConfig  # noqa: TC001 - pydantic reads it

_LIFE_MARGIN_S = 60.0
"""For waiting between the parts of a rollout, and the end of a sandbox that takes a while."""


class EvalHandling(StrEnum):
    """What training does while an evaluation runs."""

    STOP_TRAIN = "STOP_TRAIN"
    LIMIT_TRAIN = "LIMIT_TRAIN"
    NONE = "NONE"


class BaseEnvConfig(BaseModel):
    """What every environment has. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)

    group_size: int = Field(default=4, ge=1)
    """Trajectories per item."""
    max_num_workers: int = Field(default=-1, ge=-1)
    """Groups under way at once; -1: `max_num_workers_per_node` times the number of inference servers."""
    max_num_workers_per_node: int = Field(default=8, ge=1)
    """Groups under way at once per inference server."""
    max_eval_workers: int = Field(default=16, ge=1)
    """Evaluation rollouts under way at once."""
    steps_per_eval: int = 100
    """Training steps between evaluations; 0 or less: none."""
    max_token_length: int = Field(default=2048, ge=1)
    """Tokens one trajectory may have, prompt included."""
    eval_handling: EvalHandling = EvalHandling.STOP_TRAIN
    """What training does while an evaluation runs."""
    eval_limit_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the workers that go on under LIMIT_TRAIN."""
    inference_weight: float = 1.0
    """Share of the inference servers this environment claims beside others."""
    batch_size: int = -1
    """Sequences in a trainer's batch; -1: the trainer says."""
    max_batches_offpolicy: int = 3
    """Batches that may wait at the trainer before collection pauses."""
    tokenizer_name: str = "NousResearch/DeepHermes-3-Llama-3-3B-Preview"
    """Tokenizer of the policy: a folder or a hub name."""
    use_wandb: bool = False
    """`serve` reports its metrics to Weights & Biases too. Needs the extra `wandb`."""
    rollout_server_url: str = "http://localhost:8000"
    """The trajectory server of `serve`."""
    rollout_server_token: SecretStr | None = None
    """Its bearer token for environments."""
    total_steps: int = Field(default=1000, ge=-1)
    """`process`: groups to collect; -1: until the dataset ends. `serve`: training steps to take part in; -1: as many as
    the trainer registered."""
    wandb_name: str | None = None
    """Name of the run; None: the environment's name."""
    num_rollouts_to_keep: int = Field(default=32, ge=0)
    """Trajectories kept for logging."""
    num_rollouts_per_group_for_logging: int = Field(default=1, ge=-1)
    """Trajectories of a group kept for logging; -1: all."""
    ensure_scores_are_not_same: bool = True
    """Drop groups whose scores are all equal, which carry no advantage. `process` keeps them unless told otherwise."""
    data_path_to_save_groups: str | None = None
    """Run directory; None: a new one under `runs/`, in which `serve` then keeps no groups once they are sent."""
    data_dir_to_save_evals: str | None = None
    """Where `evaluate` writes."""
    min_items_sent_before_logging: int = 2
    """`serve`: groups that must have been sent since the last report of metrics for a training step to report."""
    include_messages: bool = False
    """Put the conversation into groups beside the tokens."""
    min_batch_allocation: float | None = Field(default=None, ge=0, le=1)
    """Share of each batch that is this environment's."""
    worker_timeout: float = 600
    """Seconds after which a training worker's item is taken back and retried; 0 or less: never."""
    eval_timeout_s: float = Field(default=14_400.0, gt=0)
    """`serve`: deadline of one evaluation, which is then given up and counted."""
    spool_max_mb: int = Field(default=1024, ge=1)
    """`serve`: finished groups kept on disk while the server is away; when they take more, collection waits."""
    thinking_mode: bool = False
    """Ask the policy to think."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """How hard the policy should think."""
    max_reasoning_tokens: int | None = Field(default=None, ge=1024, le=32000)
    """Tokens the policy may think."""
    custom_thinking_prompt: str | None = None
    """For the environment's own use."""


class AgentEnvConfig(BaseEnvConfig):
    """What environments with agents and sandboxes have on top."""

    backend: BackendConfig = Field(default_factory=lambda: backend_from_flat_names({}))
    """Where commands run."""
    renderer: str = "auto"
    """Model family for messages and tool calls: `auto`, a family's name, or `template` for the tokenizer's own."""
    seed: int | None = None
    """Seeds every completion by group, member and turn, so that runs can be repeated. None: the engine decides."""
    policy_retry_limit: int = Field(default=3, ge=1)
    """Attempts at one rollout when infrastructure fails, before the item is given back."""

    group_filters: list[str] = Field(default_factory=list)
    """Further rules about which finished groups are dropped: `package.module:name`, see `GroupFilter`."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Which item comes next, from how past ones were scored. By default they come as the dataset gives them."""
    staleness: StalenessLimit = StalenessLimit()
    """How many training steps a group's weights may be behind when the trainer gets it. By default nothing bounds that
    but `max_batches_offpolicy`."""
    over_provision: OverProvision = OverProvision()
    """Members started beyond `group_size`, so that one slow or lost rollout does not hold a group up, and which are
    kept."""
    pause_timeout_s: float = Field(default=1800.0, gt=0)
    """How long rollouts wait in one pause of the policy before they give up and are retried. No deadline of a turn, a
    rollout or a group runs meanwhile."""
    share_workspace_setup: bool = False
    """Run `setup_trajectory_workspace` once for a group and start each member from a copy of the workspace it left.
    Needs a backend that takes snapshots. What a set-up may then do is told there."""

    tool_timeout_s: float = Field(default=30.0, ge=1, le=600)
    """Deadline of a tool call that asks for none."""
    max_tool_timeout_s: float = Field(default=600.0, ge=1, le=600)
    """The longest deadline a tool call may ask for."""
    turn_timeout_s: float = Field(default=1200.0, gt=0)
    """Deadline of one reply of the policy."""
    rollout_timeout_s: float = Field(default=3600.0, gt=0)
    """Time an agent has for a task. Waiting for a free slot is not counted."""
    verify_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of each of the hooks: workspace set-up, and verification."""
    group_timeout_s: float = Field(default=14400.0, gt=0)
    """Deadline of a whole group, waiting and retries included."""

    tool_pool_mode: Literal["local", "docker", "nomad", "modal"] = "local"
    """Flat name for `backend.type`."""
    allow_network: bool = True
    """Whether commands may use a network, where the backend offers one; a backend's own default may be stricter."""
    require_sandbox: bool = False
    """Refuse to run commands that are not isolated."""
    require_stateful_sandbox: bool = False
    """The same for stateful terminals."""
    terminal_recording_bytes: int = Field(default=2_000_000, ge=0)
    """What one trajectory's persistent shells and terminals may record; 0: nothing is recorded."""
    record_trajectories: bool | None = None
    """Keep every rollout's trajectory in the run directory, see `agentenv trajectory`. None: in `process` and
    `evaluate`, not in `serve`."""
    tool_batch_window_ms: int = Field(default=20, ge=0)
    """Upper bound on what batching may add to a call; an idle system adds nothing."""
    tool_max_batch_size: int = Field(default=200, ge=1)
    """Calls written to a host at once, at most."""

    nomad_address: str = "http://localhost:4646"
    """Flat name, see `compat.py`; so are those below."""
    sandbox_job_id: str = "atropos-sandbox-agent-env"
    """Nomad job."""
    sandbox_image: str = "atropos-sandbox:local"
    """Container image."""
    slots_per_container: int = Field(default=10, ge=1)
    """Slots per host."""
    min_containers: int = Field(default=1, ge=0)
    """Hosts, at least."""
    max_containers: int = Field(default=10, ge=1)
    """Hosts, at most."""
    privileged: bool = False
    """Accepted for compatibility; no backend of ours needs it."""
    acquire_timeout_s: float = Field(default=30.0, gt=0)
    """Deadline for getting a slot. Only when set: otherwise a trajectory may wait as long as its rollout may last."""
    purge_job_on_start: bool = False
    """Nomad: remove the job first."""
    purge_job_on_shutdown: bool = True
    """Nomad: remove the job at the end."""
    driver: Literal["docker", "singularity"] = "docker"
    """Nomad: task driver."""
    singularity_image: str | None = None
    """Nomad: the .sif file."""
    modal_app_name: str = "atropos-sandbox"
    """Modal: app."""
    modal_image: str = "python:3.11"
    """Modal: image."""
    modal_gpu: str | None = None
    """Modal: GPU type."""
    modal_cpu: float = 1.0
    """Modal: cores."""
    modal_memory: int = 2048
    """Modal: MB."""
    modal_slots_per_sandbox: int = Field(default=10, ge=1)
    """Modal: slots per sandbox."""
    modal_min_sandboxes: int = Field(default=1, ge=0)
    """Modal: sandboxes, at least."""
    modal_max_sandboxes: int = Field(default=5, ge=1)
    """Modal: sandboxes, at most."""
    modal_idle_timeout: int = 120
    """Modal: seconds."""
    modal_max_lifetime: int = 3600
    """Modal: seconds."""
    modal_acquire_timeout: float = 60.0
    """Modal: seconds."""
    modal_execution_timeout: float = 30.0
    """Modal: seconds."""
    modal_secrets: str = ""
    """Modal: names of secrets, by comma."""
    modal_env_vars: str = ""
    """Modal: `K=V;K=V`. Empty once it is read: the values are in `backend.env_vars`."""
    modal_workspace_base: str = "/data"
    """Modal: folder of the slots."""

    agent_max_steps: int = Field(default=50, ge=1)
    """Replies of the policy in one trajectory."""
    agent_temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """Sampling temperature."""
    agent_max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one reply."""
    agent_tool_delay_s: float = Field(default=0.0, ge=0)
    """Pause before each tool call."""
    enabled_toolsets: list[str] = Field(default_factory=lambda: ["default"])
    """Toolsets the agent gets."""
    disabled_toolsets: list[str] = Field(default_factory=list)
    """Toolsets taken away again."""
    tool_server_url: str | None = None
    """Server of external tools, such as http://127.0.0.1:9002; `inprocess`: one in this process, with the tools of
    the environment's `build_server_tools`."""
    tool_server_token: SecretStr | None = None
    """Its bearer token."""
    mcp_servers: dict[str, McpServerConfig] = Field(default_factory=dict)
    """MCP servers by name, whose tools the agent gets: {command, args, env} or {url, headers}, and more."""

    @field_validator("rollout_server_url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("this is no address of a server; write it as http://host:port")
        return url

    @model_validator(mode="before")
    @classmethod
    def _map_flat_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        mapped = {**values, "backend": backend_from_flat_names(values, values.get("backend"))}
        if (
            "modal_env_vars" in mapped
        ):  # which may be secrets: they are in `backend` now, where they do not show
            mapped["modal_env_vars"] = ""
        return mapped

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_deadline_order(
            max_tool_timeout_s=max(self.tool_timeout_s, self.max_tool_timeout_s),
            turn_timeout_s=self.turn_timeout_s,
            rollout_timeout_s=self.rollout_timeout_s,
            group_timeout_s=self.group_timeout_s,
        )
        self._check_lifetime()
        return self

    def _check_lifetime(self) -> None:
        lifetime_s = getattr(self.backend, "max_lifetime_s", None)
        if lifetime_s is not None and lifetime_s <= self.trajectory_life_s:
            raise ValueError(
                f"backend.max_lifetime_s={lifetime_s:g} must be more than the {self.trajectory_life_s:g} s that one "
                f"rollout may take (rollout_timeout_s={self.rollout_timeout_s:g}, twice verify_timeout_s="
                f"{self.verify_timeout_s:g}, and a margin): its sandbox would end under it. Raise the one or lower the "
                "others"
            )

    @property
    def trajectory_life_s(self) -> float:
        """How long a trajectory may need its sandbox: set-up, agent and verification at their deadlines."""
        return self.rollout_timeout_s + 2 * self.verify_timeout_s + _LIFE_MARGIN_S

    @property
    def lasting_backend(self) -> BackendConfig:
        """The backend's config, told how long a sandbox must still live to take a trajectory where it does not say."""
        backend = self.backend
        if getattr(backend, "trajectory_life_s", 0.0) is not None:
            return backend
        return backend.model_copy(update={"trajectory_life_s": self.trajectory_life_s})

    @property
    def slot_wait_s(self) -> float:
        """How long a trajectory may wait for a slot: the acquire timeout if one was set, else the group's deadline."""
        if self.backend.type == "modal" and "modal_acquire_timeout" in self.model_fields_set:
            return self.modal_acquire_timeout
        return (
            self.acquire_timeout_s
            if "acquire_timeout_s" in self.model_fields_set
            else self.group_timeout_s
        )


def check_deadline_order(**deadlines: float) -> None:
    """Refuse deadlines that are not in rising order, as given. Raises `ValueError` naming the first wrong pair."""
    names = list(deadlines)
    for shorter, longer in pairwise(names):
        if deadlines[shorter] >= deadlines[longer]:
            raise ValueError(
                f"{shorter}={deadlines[shorter]:g} must be less than {longer}={deadlines[longer]:g}: an outer deadline "
                f"that passes first would hide which inner one was overrun"
            )
