"""Settings of every test."""

from hypothesis import settings

from tests.docker_engine import docker_engine  # noqa: F401 - a fixture for every test

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
