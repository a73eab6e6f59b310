from __future__ import annotations

import errno
import struct

import pytest

from agentenv_backends.sandboxd.seccomp import (
    DENIED,
    PRIORITY_CALLS,
    UnsupportedMachineError,
    filter_program,
)

ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
IOCTL = {"x86_64": 16, "aarch64": 29}
CLONE = {"x86_64": 56, "aarch64": 220}
PRLIMIT = {"x86_64": 302, "aarch64": 261}


def verdict(
    machine: str, number: int, *arguments: int, arch: int | None = None, init: int = 1
) -> int:
    """Run the filter over one system call, as the kernel would."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *arguments)
    program = [struct.unpack("=HBBI", i) for i in batched(filter_program(machine, init=init), 8)]
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x06:
            return int(value)
        else:
            held = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: accumulator & value != 0,
            }[code]
            position += if_true if held else if_false


def batched(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_listed_call_is_denied_and_ordinary_ones_are_allowed(machine: str) -> None:
    column = list(ARCH).index(machine)
    for name, numbers in DENIED.items():
        number = numbers[column]
        if number is not None:
            assert verdict(machine, number) == DENY, name
    for ordinary in {"x86_64": (0, 1, 59, 231), "aarch64": (63, 64, 221, 94)}[machine]:
        assert verdict(machine, ordinary) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_clone_may_make_processes_and_threads_but_no_namespaces(machine: str) -> None:
    assert verdict(machine, CLONE[machine], 17) == ALLOW
    assert verdict(machine, CLONE[machine], 0x003D0F00) == ALLOW  # pthread_create
    for flag in (
        0x00020000,
        0x02000000,
        0x04000000,
        0x08000000,
        0x10000000,
        0x20000000,
        0x40000000,
    ):
        assert verdict(machine, CLONE[machine], flag | 17) == DENY
    assert verdict(machine, 435) == ABSENT


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
def test_terminal_injection_is_denied_whatever_the_high_bits_are(
    machine: str, request_number: int
) -> None:
    assert verdict(machine, IOCTL[machine], 0, request_number) == DENY
    assert verdict(machine, IOCTL[machine], 0, request_number | 1 << 32) == DENY
    assert verdict(machine, IOCTL[machine], 0, 0x5413) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_limits_of_other_processes_cannot_be_changed(machine: str) -> None:
    assert verdict(machine, PRLIMIT[machine], 0, 7) == ALLOW
    assert verdict(machine, PRLIMIT[machine], 1, 7) == DENY


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", PRIORITY_CALLS)
def test_a_command_can_slow_down_itself_but_not_its_init(machine: str, name: str) -> None:
    numbers, kind = PRIORITY_CALLS[name]
    number = numbers[list(ARCH).index(machine)]
    before = () if kind is None else (kind,)
    assert verdict(machine, number, *before, 0) == ALLOW
    assert verdict(machine, number, *before, 77) == ALLOW
    assert verdict(machine, number, *before, 1) == DENY
    assert verdict(machine, number, *before, 1 | 1 << 32) == DENY
    assert verdict(machine, number, *before, 1, init=4711) == ALLOW
    assert verdict(machine, number, *before, 4711, init=4711) == DENY
    if kind is not None:  # all processes of a user or group, with the init among them
        assert verdict(machine, number, kind + 1, 0) == DENY
        assert verdict(machine, number, kind + 2, 0) == DENY


def test_foreign_architectures_and_x32_end_the_process() -> None:
    assert verdict("x86_64", 1, arch=0x40000003) == KILL
    assert verdict("aarch64", 1, arch=0x40000028) == KILL
    assert verdict("x86_64", 0x40000000 | 1) == KILL


def test_a_machine_without_a_filter_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedMachineError, match="riscv64"):
        filter_program("riscv64")
