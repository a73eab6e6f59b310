"""Whether the programs that tests lean on are still those of the image, where an agent that was root could change them.

Seen are interpreters and the tools of a shell, found by name where programs lie, and what every program loads. A file
counts as changed when its inode, size or time of change differ; a new one counts when it goes by the name of one that
was there before. Looked up by the sandbox's own programs, so whoever replaces those as well, faithfully, is not found
out: only a separate verifier excludes that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentenv.tasks.sandbox import SYSTEM_PATH

if TYPE_CHECKING:
    from agentenv.tasks.sandbox import TaskSandbox

_FOLDERS = "/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin"
_NAMES = (
    "sh bash dash ash busybox env python python3 test '[' cat chmod rm mkdir head tail ls tar cp mv ln grep awk mawk "
    "gawk sed kill stat find tr cut sort wc date sleep timeout"
)
_LOADED = (
    "/etc/ld.so.preload /lib*/ld-linux* /lib/ld-musl* /lib/*/libc.so.6 /etc/python3*/*customize.py "
    "/usr/lib/python3*/*customize.py /usr/lib/python3*/dist-packages/*customize.py "
    "/usr/local/lib/python3*/*customize.py /usr/local/lib/python3*/*-packages/*customize.py "
    "/.agentenv-python/ld.so /.agentenv-python/bin/* /.agentenv-python/lib/*"
)
_LOOK = (
    f"for n in {_NAMES}; do for d in {_FOLDERS}; do [ -e $d/$n ] && stat -L -c '%n %i %s %Z' $d/$n; done; done; "
    f"for f in /usr/bin/python3.* /usr/local/bin/python3.* {_LOADED}; do "
    "[ -e $f ] && stat -L -c '%n %i %s %Z' $f; done; true"
)
_ALWAYS_OURS = re.compile(r"/etc/ld\.so\.preload|.*/(site|user)customize\.py")
"""New ones of these are loaded into every program, or every Python, that the tests start."""
_MAX_BYTES = 200_000
_SHOWN = 8


async def programs_of(sandbox: TaskSandbox) -> dict[str, str]:
    """The marks of the programs there are, by path. Raises `InfrastructureError`."""
    done = await sandbox.run(_LOOK, env={"PATH": SYSTEM_PATH}, max_output_bytes=_MAX_BYTES)
    lines = done.stdout.text().splitlines()
    return {path: mark for path, _, mark in (line.partition(" ") for line in lines)}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The programs that are not what they were, at most a few of them."""
    known = {path.rpartition("/")[2] for path in before}
    found = [path for path, mark in before.items() if after.get(path) != mark]
    found += [
        path
        for path in after.keys() - before.keys()
        if path.rpartition("/")[2] in known or _ALWAYS_OURS.fullmatch(path)
    ]
    return sorted(found)[:_SHOWN]
