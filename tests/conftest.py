"""Settings of every test."""

import signal

import pytest
from hypothesis import settings

from tests.atropos import atropos  # noqa: F401 - fixtures for every test
from tests.docker_engine import busybox_image, docker_engine  # noqa: F401
from tests.emulators.nomad.live import add_option as add_nomad_option
from tests.modal_service import add_option as add_modal_option
from tests.modal_service import (  # noqa: F401
    emulated_modal,
    modal_service,
    modal_settings,
)

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
# A shell starts what it leaves in the background with Ctrl-C ignored, and every child of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of every test."""
    add_modal_option(parser)
    add_nomad_option(parser)
