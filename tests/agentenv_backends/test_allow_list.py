"""Which connections are made: what is listed, to public addresses, and never to what a name turns out to mean."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

import pytest
from pydantic import ValidationError

from agentenv_backends import allow_list
from agentenv_backends.allow_list import AllowList, RefusedError, Rule, is_public
from agentenv_backends.config import DockerConfig
from tests.waiting import WITHIN_S

PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220:1:248:1893:25c8:1946"


def resolving(*addresses: str) -> allow_list.Resolve:
    async def resolve(_name: str) -> list[allow_list.Address]:
        return [ipaddress.ip_address(address) for address in addresses]

    return resolve


async def reached(where: str, *rules: str, addresses: tuple[str, ...] = (PUBLIC,)) -> list[str]:
    found, _ = await AllowList(rules, resolving(*addresses)).addresses(where)
    return [str(address) for address in found]


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        ("example.org:443", "example.org"),
        ("example.org:80", "example.org"),
        ("EXAMPLE.org.:443", "Example.ORG"),
        ("example.org:8443", "example.org:8443"),
        ("a.example.org:443", "*.example.org"),
        ("a.b.example.org:443", "*.example.org"),
        ("anything.at.all:443", "*"),
        ("xn--bcher-kva.example:443", "xn--bcher-kva.example"),
    ],
)
async def test_what_is_listed_is_reached(where: str, rule: str) -> None:
    assert await reached(where, rule) == [PUBLIC]


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        ("example.org:22", "example.org"),
        ("example.org:443", "example.org:8443"),
        ("example.org:443", "*.example.org"),
        ("evilexample.org:443", "*.example.org"),
        ("example.org.evil.net:443", "example.org"),
        ("notexample.org:443", "example.org"),
        ("localhost:443", "*"),
        ("intranet:443", "*"),
        (f"{PUBLIC}:443", "*"),
        (f"{PUBLIC}:443", "example.org"),
        (f"[{PUBLIC_6}]:443", "*"),
        ("example.org", "example.org"),
        ("example.org:", "example.org"),
        ("example.org:443:443", "example.org"),
        ("example.org:٤٤٣", "example.org"),
        ("example.org\n:443", "*"),
        ("example.org%00.evil.net:443", "*"),
        ("user@example.org:443", "*"),
        ("exämple.org:443", "*"),
        ("a..b:443", "*"),
        ("8.8.2056:443", "*"),
        ("0x8.8.8.8:443", "*"),
        ("93.184.0330.0x22:443", "*"),
        ("-a.b:443", "*"),
        (":443", "*"),
        ("", "*"),
    ],
)
async def test_nothing_else_is(where: str, rule: str) -> None:
    with pytest.raises(RefusedError):
        await reached(where, rule)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::a9fe:a9fe",
        "fec0::1",
        "3fff::1",
        "5f00::1",
        "192.88.99.1",
        "192.0.0.192",
        "168.63.129.16",
    ],
)
async def test_a_name_that_means_no_public_address_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    for rule in ("rebinding.example", "*"):
        with pytest.raises(RefusedError, match=r"rebinding\.example has no public address"):
            await reached("rebinding.example:443", rule, addresses=(address,))


async def test_of_several_addresses_only_the_public_ones_are_tried() -> None:
    addresses = ("127.0.0.1", PUBLIC, "169.254.169.254", PUBLIC_6, "::1")
    assert await reached("mixed.example:443", "*", addresses=addresses) == [PUBLIC, PUBLIC_6]


async def test_addresses_of_this_machine_are_not_public(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allow_list._is_of_this_machine(ipaddress.ip_address("127.0.0.1"))
    assert not allow_list._is_of_this_machine(ipaddress.ip_address(PUBLIC))
    monkeypatch.setattr(allow_list, "_is_of_this_machine", lambda address: True)
    with pytest.raises(RefusedError, match="no public address"):
        await reached("me.example:443", "*")


@pytest.mark.parametrize(
    "where",
    ["2130706433:80", "0x7f.1:80", "127.1:80", "0177.0.0.1:80", "[::ffff:127.0.0.1]:80", "0:80"],
)
async def test_odd_ways_to_write_the_loopback_lead_nowhere(where: str) -> None:
    with pytest.raises(RefusedError):
        await AllowList(["*"]).addresses(where)


@pytest.mark.parametrize("rule", ["127.1", "0177.0.0.1", "*.1", "0x7f.1", "2130706433"])
def test_odd_ways_to_write_an_address_are_no_rules(rule: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Rule.parse(rule)


async def test_an_address_is_reached_where_it_is_listed_itself_and_on_its_port_alone() -> None:
    rules = ("10.1.2.3:8080", "[::1]:8081", "127.0.0.1:9000")
    assert await reached("10.1.2.3:8080", *rules) == ["10.1.2.3"]
    assert await reached("[::1]:8081", *rules) == ["::1"]
    assert await reached("[0:0:0:0:0:0:0:1]:8081", *rules) == ["::1"]
    for where in ("10.1.2.3:80", "10.1.2.4:8080", "127.0.0.1:9001", "[::ffff:127.0.0.1]:9000"):
        with pytest.raises(RefusedError):
            await reached(where, *rules)


async def test_a_name_that_cannot_be_looked_up_is_refused_in_the_resolvers_words() -> None:
    with pytest.raises(RefusedError, match=r"nowhere\.invalid cannot be looked up"):
        await AllowList(["*"]).addresses("nowhere.invalid:80")


async def test_looking_up_takes_a_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(name: str, *_: object, **__: object) -> list[object]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found, port = await AllowList(["example.org"]).addresses("example.org:443")
    assert ([str(address) for address in found], port) == ([PUBLIC], 443)
    assert asked == ["example.org"]


async def test_names_that_nobody_answers_for_hold_up_no_other_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def getaddrinfo(name: str, *_rest: object, **_options: object) -> list[object]:
        if name != "example.org":
            answers.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hostile = AllowList(["*"])
    waiting = [asyncio.create_task(hostile.addresses(f"{n}.a.org:443")) for n in range(50)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(WITHIN_S):
            found, _ = await AllowList(["example.org"]).addresses("example.org:443")
        assert [str(address) for address in found] == [PUBLIC]
    finally:
        answers.set()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


@pytest.mark.parametrize(
    "text",
    [
        "", "http://example.org", "example.org/path", "exa mple.org", "example.org:0", "example.org:70000", "*.*",
        "a*b.org", "**", "169.254.169.254", "[fe80::1]:80", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1",
        "example.org:x",
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_when_the_configuration_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="network_allow_list"):
        Rule.parse(text)
    with pytest.raises(ValidationError, match="network_allow_list"):
        DockerConfig(allow_network=True, network_allow_list=(text,))


def test_a_list_needs_the_network_allowed_and_no_network_of_the_engine() -> None:
    with pytest.raises(ValidationError, match="allow_network is false"):
        DockerConfig(network_allow_list=("example.org",))
    with pytest.raises(ValidationError, match="in no network at all"):
        DockerConfig(network_allow_list=("example.org",), allow_network=True, network="mine")
    config = DockerConfig(network_allow_list=("example.org",), allow_network=True)
    assert config.network_mode == "none"
