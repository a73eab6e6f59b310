"""Every promise of the contract, on every backend that runs here."""

import pytest
import pytest_asyncio

from agentenv_backends.conformance import CHECKS, Subject, run_checks
from agentenv_backends.conformance.running import BUILT_IN, load_factory, run_check
from tests.docker_engine import IMAGE, backend_param, needs_engine
from tests.emulators.nomad.live import nomad_address
from tests.modal_service import MODAL

SIZES = {"disk_mb": 64, "memory_mb": 256}
LOCAL = {"type": "local", "slots": 6, **SIZES}
DOCKER = {"type": "docker", "image": IMAGE, "pull": "never", **SIZES}
SHARED = {**DOCKER, "slots": 6, "max_hosts": 1}
ALONE = {**DOCKER, "slots": 1, "max_hosts": 6}
NOMAD = {"type": "nomad", "driver": "raw_exec", "slots": 6, "max_hosts": 1, **SIZES}
IN_MODAL = {**MODAL, **SIZES, "slots": 6, "max_hosts": 1}
NOT_OFFERED = {
    "local": (),
    "docker": ("memory_limit",),
    "nomad": (),
    "modal": ("memory_limit", "disk_limit"),
}
"""Capabilities that the backend says it has not: slots that share a container or a sandbox share its memory, and those
of a sandbox its disk.
"""

pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(LOCAL, id="local", marks=pytest.mark.sandbox),
        pytest.param(SHARED, id="docker", marks=pytest.mark.docker),
        pytest.param(NOMAD, id="nomad", marks=pytest.mark.sandbox),
        pytest.param(IN_MODAL, id="modal", marks=pytest.mark.sandbox),
    ],
)
def described(request):
    return backend_param(request)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arguments(described, request):
    if described["type"] != "nomad":
        yield described
        return
    async with nomad_address(request.config) as address:
        yield described | {"address": address}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject(arguments):
    make = load_factory(BUILT_IN)
    backend = make(**arguments)
    await backend.start()
    yield Subject(backend, BUILT_IN, arguments, lambda: make(**arguments))
    await backend.stop()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "_"))
async def test_a_promise_of_the_contract_holds(subject, check, request):
    outcome = await run_check(check, subject)
    kind = subject.arguments["type"]
    not_offered = set(NOT_OFFERED[kind])
    if kind == "modal" and request.config.getoption("--modal-live"):
        not_offered |= {"tmux"}  # its usual image has none
    lacks = set(check.needs) & not_offered
    assert outcome.status == ("not offered" if lacks else "holds"), outcome.detail


@pytest.mark.docker
@needs_engine
async def test_what_slots_of_one_container_lack_a_slot_with_its_own_container_has():
    lacking = [check for check in CHECKS if set(check.needs) & set(NOT_OFFERED["docker"])]
    report = await run_checks(arguments=ALONE, checks=lacking)
    assert {outcome.status for outcome in report.outcomes} == {"holds"}, report.text()
