"""Tests against a cluster: the emulator, or with `--nomad-address` a real one.

A real one needs the driver `raw_exec` on Linux nodes with bubblewrap (`nomad agent -dev` with the plugin's option
`enabled` set), and gets its token from NOMAD_TOKEN.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.emulators.nomad.server import running_nomad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

OPTION = "--nomad-address"


def add_option(parser: pytest.Parser) -> None:
    """Make the option known."""
    parser.addoption(
        OPTION, default=None, help="run tests of the Nomad backend against this cluster"
    )


@asynccontextmanager
async def nomad_address(config: pytest.Config) -> AsyncIterator[str]:
    """The address of a cluster's API."""
    given: str | None = config.getoption(OPTION)
    if given:
        yield given
        return
    async with running_nomad() as nomad:
        yield nomad.url
