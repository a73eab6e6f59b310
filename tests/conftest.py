"""Settings of every test."""

from hypothesis import settings

settings.register_profile("agentenv", deadline=None)  # no test asserts a time
settings.load_profile("agentenv")
