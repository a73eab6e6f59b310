"""Settings of every test."""

from hypothesis import settings

from tests.atropos import atropos  # noqa: F401 - fixtures for every test
from tests.docker_engine import docker_engine  # noqa: F401

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
