"""Settings of every test."""

import signal

from hypothesis import settings

from tests.atropos import atropos  # noqa: F401 - fixtures for every test
from tests.docker_engine import docker_engine  # noqa: F401

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
# A shell starts what it leaves in the background with Ctrl-C ignored, and every child of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
