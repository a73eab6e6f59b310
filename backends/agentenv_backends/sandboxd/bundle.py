"""The slot's own modules, compiled once per host with the slots' interpreter and kept on a sealed memory file."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from typing import Dict, List, Optional, Sequence, Tuple

_MODULES = (
    "lean",
    "reflinks",
    "refusal",
    "frames",
    "slot_processes",
    "slot_watch",
    "slot_capture",
    "slot_program",
    "slot_begin",
    "slot_entry",
    "slot_spawn",
    "slot_user",
    "slot_exec",
    "slot_files",
    "slot_archive",
    "slot_edit",
    "slot_child",
    "slot_glob",
    "slot_walk",
    "slot_search",
    "slot_session",
    "slot_recording",
    "shell_lines",
    "shell_loan",
    "shell_stream",
    "slot_shell",
    "slot_control",
    "slot_pane",
    "slot_tmux",
    "slot_terminals",
    "slot_report",
    "slot_snapshot",
    "slot_init",
    "slot_template",
    "template_order",
    "trees",
)
_PACKAGE = "agentenv_slot"
_COMPILE = """
import json, marshal, sys
if sys.version_info < (3, 8):
    sys.exit("Python %d.%d is too old: 3.8 or newer is needed" % sys.version_info[:2])
codes = {
    n: s and marshal.dumps(compile(s, n, "exec", 0, True, 2)) for n, s in json.load(sys.stdin).items()
}
sys.stdout.buffer.write(marshal.dumps(codes))
"""
_BOOT = (
    "import marshal,os,sys;fd=int(sys.argv.pop(1));codes=marshal.loads(os.pread(fd,1<<24,0));os.close(fd);"
    "exec(marshal.loads(codes.pop('boot')));boot('%s')"
)
INIT, TEMPLATE = _PACKAGE + ".slot_init", _PACKAGE + ".slot_template"
"""What a process of the slots' interpreter can be."""


class InterpreterError(Exception):
    """The slots' interpreter cannot be used. The message says what to do."""


def source_of(module: str) -> str:
    """The source text of a module of this package, also from inside the zip file."""
    path = os.path.join(os.path.dirname(__file__), module + ".py")
    data = __spec__.loader.get_data(path)  # type: ignore[union-attr]
    assert isinstance(data, bytes)
    return data.decode("utf-8")


def boot_command(interpreter: Sequence[str], module: str, bundle: int, stream: int) -> List[str]:
    """The command line of a process that is `module`, given the descriptors it inherits."""
    boot = _BOOT % module
    return [*interpreter, "-I", "-S", "-X", "utf8", "-c", boot, str(bundle), str(stream)]


def compile_bundle(interpreter: Sequence[str]) -> int:
    """A sealed memory file with the compiled modules. Raises `InterpreterError`."""
    sources: Dict[str, Optional[str]] = {_PACKAGE: None, "boot": source_of("slot_boot")}
    sources.update((_PACKAGE + "." + module, source_of(module)) for module in _MODULES)
    try:
        done = subprocess.run(  # noqa: S603
            [*interpreter, "-I", "-S", "-X", "utf8", "-c", _COMPILE],
            input=json.dumps(sources).encode("ascii"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InterpreterError(
            "cannot run the slots' interpreter %s: %s" % (interpreter[-1], error)
        ) from error
    if done.returncode != 0:
        text = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise InterpreterError(
            "the slots' interpreter %s cannot be used: %s" % (interpreter[-1], text)
        )
    return memory_file("slot", done.stdout)


def memory_file(name: str, content: bytes) -> int:
    """A sealed memory file: whoever gets the descriptor can read it and nothing more."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def find_interpreter(wanted: str) -> Tuple[str, ...]:
    """Candidates for the slots' interpreter, best first."""
    if wanted:
        return (wanted,)
    system = [
        path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.access(path, os.X_OK)
    ]
    return (*system, sys.executable)
