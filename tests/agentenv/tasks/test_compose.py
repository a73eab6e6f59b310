"""What is taken of a task's compose file, and what is refused with its place."""
# mypy: disable-error-code="no-untyped-call"

import json
from typing import Any

import pytest

from agentenv.tasks import TaskFormatError, load_task
from agentenv.tasks.backend_values import Place, backend_values
from agentenv.tasks.checking import check_task
from agentenv.tasks.compose import read_compose
from agentenv.tasks.errors import TaskUnsupportedError
from agentenv.tasks.options import RunOptions
from agentenv_backends.config import DockerConfig, parse_backend_config
from tests.agentenv.tasks.task_dirs import write_task

FULL = """
x-check: &check
  test: curl -f http://localhost:80/ && echo $$HOME
  interval: 1m30s
  timeout: 500ms
  retries: 5
services:
  main:
    build: {context: app, args: [VERSION=3]}
    environment: {MODE: "${MODE:-plain}", PORT: 80, SHOWN: true}
    depends_on: {web: {condition: service_healthy}}
    command: sleep infinity
    mem_limit: 1g
  web:
    image: nginx:1
    command: nginx -g 'daemon off;'
    environment: ["PRICE=$$5", "API_KEY=${API_KEY}"]
    depends_on: [db]
    healthcheck: *check
    volumes: ["./conf:/etc/nginx/conf.d:ro", "cache:/var/cache"]
    tmpfs: /run
    expose: [80]
    ports: ["80:80"]
    networks: [inner]
    restart: unless-stopped
    deploy: {resources: {limits: {cpus: "0.5", memory: 256M}}}
  db:
    build: db
    user: 999
    healthcheck: {disable: true}
networks: {inner: {}}
volumes: {cache: null}
"""
FILES = {
    "environment/app/Dockerfile": "FROM x\n",
    "environment/db/Dockerfile": "FROM y\n",
    "environment/conf/a/b.conf": "b",
    "environment/conf/c.conf": "c",
}
TOML = 'schema_version = "1.4"\n[environment]\nnetwork_mode = "no-network"\n'
SMALL: dict[str, Any] = {"image": "x"}


def task_with(path, text, toml=TOML):
    files = {**FILES, "environment/docker-compose.yaml": text}
    return write_task(path / "t", toml, files)


def values_of(task, provider="docker", **options):
    compose = task.compose
    place = Place(
        task.config.environment,
        compose.main.variables({}),
        None,
        task.dockerfile,
        host_image=True,
        main=compose.main,
        services=compose.service_values({"API_KEY": "of the caller"}),
    )
    return backend_values(place, provider, RunOptions(backend=options))


def test_a_compose_file_becomes_the_sandbox_and_its_services(tmp_path):
    task = load_task(task_with(tmp_path, FULL))
    config = parse_backend_config(values_of(task))
    assert isinstance(config, DockerConfig)
    folder = tmp_path.resolve() / "t/environment"
    assert (config.dockerfile, config.build_context) == (folder / "app/Dockerfile", folder / "app")
    assert (config.build_args, config.memory_mb) == ({"VERSION": "3"}, 1024)
    web, db = config.services
    assert web.command == ("nginx", "-g", "daemon off;")
    assert {name: each.get_secret_value() for name, each in web.variables.items()} == {
        "PRICE": "$5",
        "API_KEY": "of the caller",
    }
    assert web.healthcheck is not None
    assert web.healthcheck.test == ("CMD-SHELL", "curl -f http://localhost:80/ && echo $HOME")
    check = web.healthcheck
    assert (check.interval_s, check.timeout_s, check.retries) == (90.0, 0.5, 5)
    assert web.files == {
        "/etc/nginx/conf.d/a/b.conf": folder / "conf/a/b.conf",
        "/etc/nginx/conf.d/c.conf": folder / "conf/c.conf",
    }
    assert (web.volumes, web.tmpfs) == (("/var/cache",), ("/run",))
    assert (web.after, web.memory_mb, web.cpus) == (("db",), 256, 0.5)
    assert (db.dockerfile, db.user) == (folder / "db/Dockerfile", "999")
    assert db.healthcheck is not None
    assert db.healthcheck.test == ("NONE",)
    assert task.compose is not None
    assert task.compose.main.variables({}) == {"MODE": "plain", "PORT": "80", "SHOWN": "true"}
    assert [warning.split(": ")[1] for warning in task.warnings] == [
        "networks is left out",
        "services.web.ports is left out",
        "services.web.networks is left out",
        "services.web.restart is left out",
    ]
    json.dumps(values_of(task), default=str)  # as what shares sandboxes tells them apart by


def test_a_file_of_services_alone_leaves_the_sandbox_to_the_task(tmp_path):
    toml = TOML + 'docker_image = "mine"\nmemory_mb = 300\n'
    task = load_task(task_with(tmp_path, "services: {db: {image: x}}", toml))
    values = values_of(task)
    assert (values["image"], values["memory_mb"]) == ("mine", 300)
    assert values_of(task, image="given")["image"] == "given"


@pytest.mark.parametrize(
    ("service", "place", "reason"),
    [
        ({"privileged": True}, "db.privileged", "is not offered: it would give the service the machine"),
        ({"cap_add": ["ALL"]}, "db.cap_add", "is not offered"),
        ({"devices": ["/dev/kvm"]}, "db.devices", "is not offered"),
        ({"network_mode": "host"}, "db.network_mode", "is not offered"),
        ({"pid": "host"}, "db.pid", "is not offered"),
        ({"security_opt": ["seccomp=unconfined"]}, "db.security_opt", "is not offered"),
        ({"extends": {"file": "x"}}, "db.extends", "is not offered"),
        ({"unheard_of": 1}, "db.unheard_of", "is not offered"),
        ({"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]}, "db.volumes[0]", "must be relative"),
        ({"volumes": ["../tests:/tests"]}, "db.volumes[0]", "leads out of environment/"),
        ({"volumes": ["./none:/x"]}, "db.volumes[0]", "there is no such file"),
        ({"volumes": ["./conf:x"]}, "db", "is no absolute path"),
        ({"volumes": [{"type": "npipe", "source": "x", "target": "/x"}]}, "db.volumes[0]", "'npipe' is not offered"),
        ({"networks": {"inner": {"aliases": ["x"]}}}, "db.networks", "takes no settings"),
        ({"command": "echo $HOME"}, "db.command", "for a dollar sign write $$"),
        ({"environment": {"A": "x${B}"}}, "db.environment", "for a dollar sign write $$"),
        ({"environment": ["A"]}, "db.environment", "A has no value"),
        ({"depends_on": ["none"]}, "db.depends_on", "there is no service none"),
        ({"depends_on": ["main"]}, "db.depends_on", "main is started when"),
        ({"depends_on": ["db"]}, "services", "in a circle: db -> db"),
        ({"depends_on": {"db": {"condition": "service_completed_successfully"}}}, "db.depends_on", "is not offered"),
        ({"healthcheck": {"test": ["curl"]}}, "db.healthcheck.test", "begins with CMD"),
        ({"healthcheck": {"test": "x", "interval": "soon"}}, "db.healthcheck.interval", "is no duration"),
        ({"tmpfs": "/run:size=1g"}, "db", "must be a path alone"),
        ({"mem_limit": "much"}, "db.mem_limit", "is no size"),
        ({"cpus": float("inf")}, "db.cpus", "finite"),
        ({"image": ""}, "db.image", "at least 1 character"),
        ({"image": None}, "db", "has neither image nor build"),
        ({"build": "none"}, "db.build.context", "there is no such"),
        ({"build": {"context": "db", "target": "x"}}, "db.build.target", "is not offered"),
    ],
)  # fmt: skip
def test_what_is_not_sound_is_refused_with_its_place(tmp_path, service, place, reason):
    text = json.dumps({"services": {"main": SMALL, "db": {**SMALL, **service}}})
    text = text.replace("Infinity", ".inf")  # as YAML spells it
    problems = check_task(task_with(tmp_path, text)).problems
    assert len(problems) == 1, problems
    assert place in problems[0]
    assert reason in problems[0]
    assert problems[0].startswith("environment/docker-compose.yaml: services")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in ("ab", "bc", "cd", "de", "ef")
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "services: there are none"),
        ("services: [", "while parsing"),
        ("services: {a: {image: x}, a: {image: y}}", "the key 'a' stands twice"),
        ("services: {a: {image: x}}\ninclude: [b.yaml]", "include: is not offered"),
        ("services: {a: {image: x}}\nsecrets: {}", "secrets: is not offered"),
        (
            "services: {a: {image: x}}\nvolumes: {v: {external: true}}",
            "volumes.v: takes no settings",
        ),
        ("services: {main: {healthcheck: {test: x}}}", "not offered for the sandbox itself"),
        ("services: {'a b': {image: x}}", "is no service's name"),
        ("services: &s {a: *s}", "a part of"),
        (BOMB, "more than 20000 values"),
        (
            "services: {a: {image: x, volumes: ['v:/v']}, b: {image: x, volumes: ['v:/v']}}",
            "services share no volumes",
        ),
        (json.dumps({"services": {f"s{n}": SMALL for n in range(17)}}), "there are 17; at most 16"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_the_reason(tmp_path, text, reason):
    task_with(tmp_path, text)
    with pytest.raises(TaskFormatError, match=r"environment/docker-compose\.yaml: ") as told:
        read_compose((tmp_path / "t").resolve(), "environment/docker-compose.yaml")
    assert reason in str(told.value)


@pytest.mark.parametrize("provider", ["local", "modal", "nomad"])
def test_services_are_for_docker(tmp_path, provider):
    task = load_task(task_with(tmp_path, "services: {db: {image: x}}"))
    with pytest.raises(TaskUnsupportedError, match=r"several services.*run it on docker"):
        values_of(task, provider)


def test_services_and_a_list_of_hosts_are_refused(tmp_path):
    toml = TOML.replace("no-network", "allowlist") + 'allowed_hosts = ["a.b"]\ndocker_image = "x"\n'
    task = load_task(task_with(tmp_path, "services: {db: {image: x}}", toml))
    with pytest.raises(TaskUnsupportedError, match="services and network_mode"):
        values_of(task)
