"""What a sweep takes for a leftover."""
# mypy: disable-error-code="no-untyped-call"

import os
import subprocess
from dataclasses import replace

import pytest

from agentenv_backends._owner import Owner
from agentenv_backends.docker.engine import ContainerEntry
from agentenv_backends.docker.owners import (
    EXPIRES_LABEL,
    OWNER_LABEL,
    STALE_S,
    is_leftover,
    labels,
    owner_name,
)

NOW = 1_000_000.0


@pytest.fixture(scope="module")
def dead():
    process = subprocess.Popen(["true"])
    owner = replace(Owner.me(), pid=process.pid)
    process.wait()
    return owner


def container(owner, *, state="running", age=10_000.0, expires=NOW + 1, **more):
    return ContainerEntry("c", state, NOW - age, labels("run", owner, expires) | more)


def test_an_owner_survives_being_a_label():
    assert Owner.read(Owner.me().label()) == Owner.me()
    assert not Owner.me().is_dead()


def test_what_a_live_driver_owns_stays():
    assert not is_leftover(container(Owner.me()), NOW)
    assert not is_leftover(container(Owner.me(), state="paused"), NOW)


def test_what_a_dead_driver_of_this_machine_owned_goes(dead):
    for state in ("created", "running", "paused", "exited"):
        assert is_leftover(container(dead, state=state, age=1), NOW)


def test_a_pid_that_belongs_to_someone_else_by_now_is_a_dead_driver():
    earlier = replace(Owner.me(), start_time=Owner.me().start_time - 1)
    assert is_leftover(container(earlier), NOW)


@pytest.mark.parametrize("change", [{"boot": "another"}, {"pid_namespace": 1}])
def test_of_other_machines_and_pid_namespaces_only_what_has_expired_goes(dead, change):
    stranger = replace(dead, **change)
    assert not is_leftover(container(stranger), NOW)
    assert is_leftover(container(stranger, expires=NOW - 1), NOW)


def test_what_has_expired_goes_whoever_owns_it():
    assert is_leftover(container(Owner.me(), expires=NOW - 1), NOW)


@pytest.mark.parametrize("state", ["created", "exited", "dead"])
def test_what_does_not_run_for_long_goes_whoever_owns_it(state):
    assert not is_leftover(container(Owner.me(), state=state, age=STALE_S - 1), NOW)
    assert is_leftover(container(Owner.me(), state=state, age=STALE_S + 1), NOW)


@pytest.mark.parametrize("label", ["", "x", "a:b:c:d", "1:2:3", "boot:1:2:3:4", "boot:1:-2:x"])
def test_a_label_that_makes_no_sense_protects_what_runs(label):
    broken = {OWNER_LABEL: label, EXPIRES_LABEL: "soon"}
    assert not is_leftover(container(Owner.me(), **broken), NOW)


def test_an_owner_is_named_for_people(dead):
    assert owner_name(container(Owner.me())) == f"run run, process {os.getpid()}"
    assert "another machine" in owner_name(container(replace(dead, boot="another")))
    assert owner_name(ContainerEntry("c", "running", NOW, {})) == "run ?"
