"""What containers are created with, as far as the configuration decides it."""
# mypy: disable-error-code="no-untyped-call"

import pytest

from agentenv_backends.config import DockerConfig, LocalConfig, parse_backend_config
from agentenv_backends.config.services import ServiceConfig
from agentenv_backends.docker import service_options
from agentenv_backends.docker.containers import (
    container_memory_mb,
    create_options,
    host_settings,
    slot_folders,
)
from agentenv_backends.errors import BackendConfigError


def host_config(**values):
    return create_options(DockerConfig(**values), "sha256:1", {})["HostConfig"]


def test_every_slot_has_a_workspace_and_a_tmp_of_fixed_size():
    tmpfs = host_config(slots=3, disk_mb=7, tmp_mb=2)["Tmpfs"]
    assert len(tmpfs) == 8
    assert "size=7m" in tmpfs["/slots/2/workspace"]
    assert "size=2m" in tmpfs["/slots/2/tmp"]
    for shared in ("/slots", "/var/run/nscd"):
        assert "mode=0755" in tmpfs.pop(shared)
    assert all("mode=0700" in options and "nosuid" in options for options in tmpfs.values())
    assert slot_folders(DockerConfig(slots=3))[2] == ("/slots/2/workspace", "/slots/2/tmp")


def test_a_slot_alone_has_workspace_and_tmp_where_everybody_expects_them():
    assert slot_folders(DockerConfig(slots=1)) == (("/workspace", "/tmp"),)


def test_slots_that_share_a_container_have_no_shared_memory_of_any_kind():
    shared = host_config(slots=2)
    assert shared["IpcMode"] == "none"
    assert shared["Sysctls"]["kernel.shmmni"] == "0"
    assert shared["Sysctls"]["fs.mqueue.queues_max"] == "0"
    alone = host_config(slots=1, tmp_mb=10)
    assert (alone["IpcMode"], alone["ShmSize"]) == ("private", 10 << 20)
    assert "Sysctls" not in alone


def test_limits_of_a_container_hold_all_its_slots():
    config = DockerConfig(slots=4, memory_mb=100, disk_mb=20, tmp_mb=10, max_processes=50)
    host = create_options(config, "sha256:1", {})["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == container_memory_mb(config) << 20
    assert container_memory_mb(config) >= 4 * (100 + 20 + 10)
    assert host["PidsLimit"] >= 4 * 50
    assert container_memory_mb(DockerConfig(container_memory_mb=300)) == 300


def test_a_share_of_the_processors_is_always_stated():
    assert host_config(cpus=1.5)["NanoCpus"] == 1_500_000_000
    assert host_config()["CpuShares"] == 1024


def test_the_network_is_shut_unless_it_is_asked_for():
    assert host_config()["NetworkMode"] == "none"
    assert host_config(allow_network=True)["NetworkMode"] == "bridge"
    assert host_config(allow_network=True, network="lab")["NetworkMode"] == "lab"
    assert host_config(allow_network=True, network="none")["NetworkMode"] == "none"


def test_the_server_is_told_where_slots_are_and_when_to_end():
    config = DockerConfig(slots=2, lease_s=40, max_lifetime_s=100)
    settings = host_settings(config, "run-h1", 5000, 100)
    assert settings.isolation == "user"
    assert settings.slot_folders == slot_folders(config)
    assert (settings.lease_s, settings.max_lifetime_s) == (40, 100)
    assert (settings.uid_base, settings.uid_count) == (5000, 100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"slots": 2, "read_only_root": False},
            "read_only_root false needs slots 1, and slots is 2",
        ),
        ({"slots": 2, "run_as_root": True}, "run_as_root true needs slots 1"),
        ({"network": "bridge"}, "network is 'bridge' while allow_network is false"),
        ({"network": "host", "allow_network": True}, "network 'host' shows this machine's own"),
        ({"network": "container:x", "allow_network": True}, "another container's"),
        ({"build_args": {"a": "b"}}, "build_args is for building: say which dockerfile"),
        (
            {"services": [{"name": "db", "image": "x"}]},
            "services need a container for each trajectory",
        ),
        (
            {
                "services": [{"name": "db", "image": "x"}],
                "slots": 1,
                "run_as_root": True,
                "allow_network": True,
                "network": "lab",
            },
            "services are in a network of their own",
        ),
        ({"pull": "sometimes"}, r"backend\.pull = 'sometimes'"),
        ({"imag": "x"}, r"backend\.imag = 'x': Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(values, message):
    with pytest.raises(BackendConfigError, match=message):
        parse_backend_config({"type": "docker"} | values)


def test_the_type_decides_which_config_it_is():
    assert isinstance(parse_backend_config({"type": "docker", "image": "x"}), DockerConfig)
    assert isinstance(parse_backend_config({}), LocalConfig)
    with pytest.raises(BackendConfigError, match="image"):
        parse_backend_config({"type": "local", "image": "x"})


def test_a_service_gets_what_hosts_get_and_a_network_that_leads_nowhere():
    service = ServiceConfig(name="db", image="x", memory_mb=100)
    config = DockerConfig(slots=1, run_as_root=True, services=(service,))
    options = service_options.service_options(config, service, "sha256:1", {})
    options = service_options.joined(options, config, "net", "db")
    host = service_options.kept_by(options, "net.keeper")["HostConfig"]
    of_hosts = create_options(config, "sha256:1", {})["HostConfig"]
    for name in ("CapDrop", "CapAdd", "SecurityOpt", "LogConfig", "AutoRemove", "IpcMode"):
        assert host[name] == of_hosts[name], name
    assert host["Memory"] == host["MemorySwap"] == 100 << 20
    assert (host["NetworkMode"], host["PidMode"]) == ("net", "container:net.keeper")
    assert options["NetworkingConfig"]["EndpointsConfig"] == {"net": {"Aliases": ["db"]}}
    assert not {"Binds", "PortBindings", "Privileged", "Devices"} & set(host)
    assert service_options.network_options(config, "net", {})["Internal"]
    assert host_settings(config, "run-h1", 5000, 100).allow_network  # it has one


def test_what_could_be_written_elsewhere_makes_containers_single_use():
    assert not DockerConfig(slots=1).pool_settings().limits.single_use_hosts
    for name, value in (("read_only_root", False), ("run_as_root", True)):
        config = parse_backend_config({"type": "docker", "slots": 1, name: value})
        assert config.pool_settings().limits.single_use_hosts


def test_getting_an_image_may_take_longer_than_starting_a_container():
    settings = DockerConfig(pull_timeout_s=1000, launch_timeout_s=60).pool_settings()
    assert (settings.prepare_timeout_s, settings.launch_timeout_s) == (1060, 60)


def test_every_field_is_documented():
    for name, field in DockerConfig.model_fields.items():
        assert field.description, name
