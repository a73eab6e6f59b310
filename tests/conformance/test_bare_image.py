"""The promises of the contract in images with nothing but busybox: by a Python that is brought along."""

import pytest

from agentenv_backends.conformance import CHECKS, run_checks
from tests.docker_engine import DOCKER, PROBE, needs_engine

NOT_OFFERED = {"memory_limit", "stateful_terminals", "tmux"}
"""Slots that share a container share its memory; and the image has neither bash nor tmux."""


@pytest.mark.docker
@pytest.mark.slow
@needs_engine
async def test_every_promise_that_needs_no_program_of_the_image_holds(busybox_image):
    sizes = {"slots": 6, "max_hosts": 1, "disk_mb": 64, "memory_mb": 256}
    # The probe of what a slot may do is a Python program.
    variables = {"PATH": f"/bin:{PROBE}"}
    arguments = {**DOCKER, "image": busybox_image, **sizes, "variables": variables}
    report = await run_checks(arguments=arguments)
    expected = {
        check.name: "not offered" if set(check.needs) & NOT_OFFERED else "holds" for check in CHECKS
    }
    assert {o.check.name: o.status for o in report.outcomes} == expected, report.text()
