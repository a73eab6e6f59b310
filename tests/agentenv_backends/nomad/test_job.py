"""What is registered for a configuration, and which configurations are refused."""
# mypy: disable-error-code="no-untyped-call"

import json
from dataclasses import replace

import pytest

from agentenv_backends.config import NomadConfig, parse_backend_config
from agentenv_backends.errors import BackendConfigError
from agentenv_backends.nomad.job import (
    SPEC_KEY,
    Run,
    host_settings,
    key_of,
    make_job,
    memory_mb,
)
from agentenv_backends.nomad.knock import Welcome

HERE = Welcome("/local", 1 << 32, "/app")
RUN = Run("agentenv-1", "1", "boot:1:2:3", "0123456789abcdef" * 4)


def job_of(**values):
    return make_job(NomadConfig(**values), RUN, 2)


def task_of(job):
    return job["TaskGroups"][0]["Tasks"][0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"driver": "singularity"}, "say which singularity_image"),
        ({"singularity_image": "a.sif"}, "singularity_image is 'a.sif' while driver is docker"),
        ({"isolation": "none"}, "cannot keep commands from the network"),
        ({"purge_job_on_shutdown": False}, "without job_id no later run could find the job"),
        ({"client_cert": "cert.pem"}, "client_cert and client_key go together"),
        ({"job_id": "two words"}, r"backend\.job_id = 'two words'"),
        ({"datacenters": ()}, r"backend\.datacenters"),
    ],
)
def test_what_cannot_work_is_refused_with_the_settings_name(values, message):
    with pytest.raises(BackendConfigError, match=message):
        parse_backend_config({"type": "nomad", **values})


def test_a_token_is_not_shown():
    config = NomadConfig.model_validate({"token": "secret-of-ours"})
    assert "secret-of-ours" not in repr(config) + str(config.model_dump())


def test_every_field_is_documented():
    for name, field in NomadConfig.model_fields.items():
        assert field.description, name


def test_the_count_of_the_one_group_is_the_number_of_hosts():
    job = job_of(max_hosts=7)
    (group,) = job["TaskGroups"]
    assert (job["Type"], group["Count"]) == ("service", 2)
    assert group["Scaling"] == {"Enabled": False, "Min": 0, "Max": 7}


def test_no_deployment_ever_keeps_the_job_from_being_scaled():
    assert job_of()["Update"] == {"MaxParallel": 0}


def test_the_key_is_in_a_file_for_the_task_alone_and_in_no_command_line():
    for driver in ("docker", "podman", "exec", "raw_exec"):
        job = job_of(driver=driver)
        assert key_of(job) == RUN.key
        assert RUN.key not in json.dumps(task_of(job)["Config"])
        assert "Env" not in task_of(job)


def test_settings_of_the_cluster_are_passed_on():
    job = job_of(
        datacenters=["dc2"],
        node_pool="gpu",
        priority=70,
        cpu_mhz=900,
        host_memory_mb=4000,
        constraints=[{"attribute": "${attr.cpu.arch}", "value": "amd64"}],
    )
    assert (job["Datacenters"], job["NodePool"], job["Priority"]) == (["dc2"], "gpu", 70)
    assert job["Constraints"] == [
        {"LTarget": "${attr.cpu.arch}", "Operand": "=", "RTarget": "amd64"}
    ]
    assert task_of(job)["Resources"] == {"CPU": 900, "MemoryMB": 4000}


def test_containers_have_six_capabilities_and_a_root_that_cannot_be_written():
    options = task_of(job_of())["Config"]
    assert options["readonly_rootfs"]
    assert (options["cap_drop"], len(options["cap_add"])) == (["all"], 6)
    assert "privileged" not in options


def test_a_singularity_image_runs_on_a_port_of_its_own_by_raw_exec():
    task = task_of(job_of(driver="singularity", singularity_image="/images/tools.sif"))
    words = task["Config"]["args"]
    assert (task["Driver"], task["Config"]["command"]) == ("raw_exec", "apptainer")
    assert "/images/tools.sif" in words
    assert words[words.index("--port") + 1] == "${NOMAD_PORT_sandboxd}"


def test_hosts_of_a_node_have_users_apart():
    config = NomadConfig()
    ports = [host_settings(config, "r", port, HERE) for port in (20_000, 20_001)]
    first, second = (settings.uid_base for settings in ports)
    assert second - first >= ports[0].uid_count


def test_where_few_users_are_mapped_a_host_stays_among_them():
    settings = host_settings(NomadConfig(), "r", 20_000, replace(HERE, mapped_ids=65_536))
    assert settings.uid_base + settings.uid_count <= 65_536


def test_slots_that_are_users_get_no_sockets_unless_the_network_is_allowed():
    assert host_settings(NomadConfig(), "r", 1, HERE).refuse_sockets
    allowed = NomadConfig(allow_network=True)
    assert not host_settings(allowed, "r", 1, HERE).refuse_sockets
    assert not host_settings(NomadConfig(driver="exec"), "r", 1, HERE).refuse_sockets


def test_a_host_has_memory_for_all_its_slots():
    assert memory_mb(NomadConfig(slots=4, memory_mb=1000)) >= 4000
    assert memory_mb(NomadConfig(driver="exec", slots=4, memory_mb=1000, disk_mb=500)) >= 6000


def test_the_same_hosts_are_known_by_their_settings_whoever_they_are_for():
    config = NomadConfig()
    other = replace(RUN, job_id="other", run_id="2", owner="boot:5:6:7", key="f" * 64)
    spec = make_job(config, RUN, 2)["Meta"][SPEC_KEY]
    assert make_job(config, other, 9)["Meta"][SPEC_KEY] == spec
    assert make_job(NomadConfig(memory_mb=600), RUN, 2)["Meta"][SPEC_KEY] != spec
