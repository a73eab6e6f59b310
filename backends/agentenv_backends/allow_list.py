"""Which connections commands may make: rules, and the addresses that a name may stand for.

A name is resolved once, by whoever makes the connection, and the connection goes to the very address that was looked
at, so that a name cannot mean something else a moment later.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Resolve = Callable[[str], Awaitable[Sequence[Address]]]

_RESOLVE_S = 10.0
_PATIENCE_S = 30.0
_LOOKUPS_AT_ONCE = 8
"""Of one list. Names whose servers do not answer, which anybody can have, hold up nobody else's."""
_MOST_THREADS = 256
"""Of all lists; also those that are no longer waited for."""
_WEB_PORTS = (80, 443)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_IN_USE = ipaddress.ip_network("2000::/3")
"""What of IPv6 is given to anybody. Some of the rest stands for IPv4 addresses, which may be anything."""
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(net)
    for net in (
        *("2001::/32", "2002::/16", "192.88.99.0/24"),  # stand for others
        "3fff::/20",  # for documentation
        *("192.0.0.0/24", "168.63.129.16/32"),  # where clouds tell machines who they are
    )
)
_NUMBERS = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Names that resolvers take for spellings of addresses."""


class RefusedError(Exception):
    """This connection is not made. The message is for whoever asked."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of an allow-list."""

    name: str
    """A name, an address, `*.name` for all names below one, or `*` for all names."""
    ports: tuple[int, ...] = _WEB_PORTS

    @classmethod
    def parse(cls, text: str) -> Self:
        """`name`, `name:port`, `*.name`, `*`, an address, `[address]:port`. Raises `ValueError`."""
        text = text.strip()
        name, port = text, 0
        if _has_port(text):
            name, _, digits = text.rpartition(":")
            port = int(digits) if digits.isascii() and digits.isdecimal() else 0
            if not 1 <= port <= 65535:
                raise ValueError(f"network_allow_list: {text!r} has no port between 1 and 65535")
        name = _plain(name)
        address = _as_address(name)
        if address is not None and (address.is_link_local or not _may_be_listed(address)):
            raise ValueError(
                f"network_allow_list: {text!r} is no address of a service (link-local addresses tell machines who "
                "they are, and are never reached)"
            )
        if address is None and name != "*" and not _is_name(name.removeprefix("*.")):
            raise ValueError(
                f"network_allow_list: {text!r} is no name; give `example.org`, `example.org:8443`, `*.example.org`, "
                "an address, or `*` for every public name"
            )
        return cls(name, (port,) if port else _WEB_PORTS)

    def covers(self, host: str, port: int) -> bool:
        """Whether a connection to this host, in `_plain` form, is meant."""
        if port not in self.ports:
            return False
        if self.name == "*":
            return "." in host
        return host == self.name or (
            self.name.startswith("*.")
            and host.endswith(self.name[1:])
            and len(host) > len(self.name) - 1
        )


class AllowList:
    """Which connections are made. `resolve` looks a name up."""

    def __init__(self, rules: Sequence[str], resolve: Resolve | None = None) -> None:
        self._rules = [Rule.parse(text) for text in rules]
        self._resolve = resolve or _looked_up
        self._lookups = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

    async def addresses(self, where: str) -> tuple[list[Address], int]:
        """The addresses to try for `host:port`, and the port. Raises `RefusedError`.

        A listed address is itself. A name is its public addresses, whatever else it resolves to.
        """
        try:
            name, port = _split(where)
        except ValueError as error:
            raise RefusedError(f"{where[:200]!r} is no host and port") from error
        host = _plain(name)
        address = _as_address(host)
        if not any(rule.covers(host, port) for rule in self._rules if not _is_wild(rule, address)):
            raise RefusedError(f"{host[:200]}:{port} is not in network_allow_list")
        if address is not None:
            return [address], port
        if not _is_name(host):
            raise RefusedError(f"{host[:200]!r} is no name")
        found = [each for each in await self._look_up(host) if is_public(each)]
        if not found:
            raise RefusedError(f"{host} has no public address")
        return found, port

    async def _look_up(self, name: str) -> Sequence[Address]:
        try:
            async with asyncio.timeout(_PATIENCE_S), self._lookups:
                return await self._resolve(name)
        except TimeoutError as error:
            raise RefusedError(f"{name} was not looked up within {_PATIENCE_S:g} s") from error


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and not of this machine, a private network or a link."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in _IN_USE:
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if not address.is_global or address.is_multicast or address.is_unspecified:
        return False
    return not _is_of_this_machine(address)


def _is_of_this_machine(address: Address) -> bool:
    """Only an address of one's own can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _may_be_listed(address: Address) -> bool:
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if plain is not None:
        return not plain.is_link_local and _may_be_listed(plain)
    unused = address.version == 4 and address.is_reserved
    return not (address.is_multicast or address.is_unspecified or unused)


def _is_name(host: str) -> bool:
    return bool(_NAME.fullmatch(host)) and not _NUMBERS.fullmatch(host)


def _is_wild(rule: Rule, address: Address | None) -> bool:
    """Addresses are reached only where they are listed as such."""
    return address is not None and rule.name.startswith("*")


def _as_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """As it is compared: lower case, without brackets and a last dot; addresses in their usual form."""
    host = host.lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    address = _as_address(host)
    return str(address) if address is not None else host.removesuffix(".")


def _has_port(text: str) -> bool:
    after = text.rpartition("]")[2]
    return ":" in after and (text.startswith("[") or text.count(":") == 1)


def _split(where: str) -> tuple[str, int]:
    """Raises `ValueError`."""
    host, colon, port = where.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or not host:
        raise ValueError(f"{where!r} has no port")
    return host, int(port)


# --- Names ----------------------------------------------------------------------------------------


async def _looked_up(name: str) -> list[Address]:
    """What this machine's resolver says. Raises `RefusedError`.

    In a thread of its own that nobody waits for at the end of the program: a resolver may hang.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Address] | OSError] = loop.create_future()

    def settle(found: list[Address] | OSError) -> None:
        if not answer.done():
            answer.set_result(found)

    def look() -> None:
        try:
            entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            found: list[Address] | OSError = [
                ipaddress.ip_address(entry[4][0]) for entry in entries
            ]
        except (OSError, ValueError) as error:
            found = OSError(str(error))
        _threads.release()
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:
            return  # the loop has ended meanwhile

    if not _threads.acquire(blocking=False):
        raise RefusedError(f"{name} is not looked up: too many others are")
    threading.Thread(target=look, name="look-up", daemon=True).start()
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await answer
    except TimeoutError as error:
        raise RefusedError(f"{name} was not looked up within {_RESOLVE_S:g} s") from error
    if isinstance(found, OSError):
        raise RefusedError(f"{name} cannot be looked up: {found}")
    return list(dict.fromkeys(found))


_threads = threading.Semaphore(_MOST_THREADS)
