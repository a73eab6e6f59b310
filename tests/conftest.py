"""Settings of every test."""

from hypothesis import settings

from tests.atropos import atropos  # noqa: F401 - fixtures for every test
from tests.docker_engine import docker_engine  # noqa: F401
from tests.modal_service import (  # noqa: F401
    emulated_modal,
    modal_service,
    modal_settings,
    pytest_addoption,
)

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
