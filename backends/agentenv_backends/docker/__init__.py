"""Hosts that are containers of a Docker engine.

engine.py      our calls to the engine, each with a deadline
images.py      which image: pulled, or built from a Dockerfile
workspaces.py  prepared workspaces that the engine keeps for later runs
containers.py  what a container is created with: pure functions
services.py    containers beside a host's main one; service_options.py: what they are created with
owners.py      whose a container is, and what a sweep may remove
egress.py      the only way out of a container with a network allow-list
stream.py      the stream to a container's main process, as an asyncio transport
bringing.py    a Python for images that have none: a copy of the driver's own
boot.py        what that process is: a few lines that receive the sandbox server and become it
provider.py    `DockerProvider`, which puts these together
"""
