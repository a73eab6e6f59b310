"""Hosts that are sandboxes of Modal (modal.com).

service.py     our calls to Modal's client, each with a deadline, and its errors in our words
creation.py    what a sandbox is created with: pure functions
owners.py      whose a sandbox is, and what a sweep may remove
stream.py      the stream to a command in a sandbox, as an asyncio transport
sandbox.py     one sandbox, from before it exists until it is gone
provider.py    `ModalProvider`, which puts these together
"""
