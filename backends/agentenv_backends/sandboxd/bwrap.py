"""The bubblewrap command line of a slot: what it may see, and nothing else.

The root and /dev are read-only (bubblewrap makes them memory file systems without a size), /workspace, /tmp and
/dev/shm are sized, /usr is the host's, /etc is a few files. Nothing of the driver's environment, home or temporary
files is there. Descriptors: the stream and the compiled modules stay open; the rest is read by bubblewrap itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Dict, List, Tuple

from .settings import HostSettings

WORKSPACE = "/workspace"
SLOT_UID = 1000
_MB = 1 << 20
_TIMEOUT_S = 10.0
_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "pki/tls",
    "pki/ca-trust",
)
_ETC_WITH_NETWORK = ("resolv.conf", "gai.conf", "services", "protocols")
ETC_FILES: Dict[str, str] = {
    "/etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    "agent:x:1000:1000:agent:/workspace:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class BubblewrapError(Exception):
    """Bubblewrap cannot be used here. The message says what to do."""


def find_bubblewrap() -> Tuple[str, str]:
    """Path and version of bubblewrap. Raises `BubblewrapError`."""
    path = shutil.which("bwrap")
    if path is None:
        raise BubblewrapError(
            "bubblewrap (bwrap) is not installed: install the package `bubblewrap`, or choose isolation none and "
            "read what it gives up"
        )
    if b"--disable-userns" not in _output(path, "--help"):
        raise BubblewrapError(
            "%s is too old: 0.8.0 or newer is needed (for --disable-userns)" % path
        )
    return path, _output(path, "--version").decode("ascii", "replace").strip().rpartition(" ")[2]


def _output(path: str, argument: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - the path comes from PATH, the argument from here
            [path, argument],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BubblewrapError("%s %s: %s" % (path, argument, error)) from error
    return done.stdout


def command_line(
    bubblewrap: str,
    settings: HostSettings,
    folders: List[str],
    data_files: Dict[str, int],
    seccomp: int,
) -> List[str]:
    """The arguments up to, not including, the program to run.

    `folders` are those of `system_folders`. `data_files` maps paths of the sandbox to descriptors that bubblewrap reads
    them from, `seccomp` is the one it reads the filter from.
    """
    tmp_bytes = str(settings.tmp_mb * _MB)
    arguments = [bubblewrap, "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1"]
    if settings.allow_network:
        arguments.append("--share-net")
    arguments += ["--uid", str(SLOT_UID), "--gid", str(SLOT_UID), "--hostname", "sandbox"]
    arguments += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    arguments += folders
    for path, descriptor in data_files.items():
        # Copied into the root, which is made read-only below: a mount for each costs more than its file.
        arguments += ["--perms", "0644", "--file", str(descriptor), path]
    arguments += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    arguments += ["--dev", "/dev", "--perms", "1777", "--size", tmp_bytes, "--tmpfs", "/dev/shm"]  # noqa: S108
    arguments += ["--remount-ro", "/dev", "--perms", "1777", "--size", tmp_bytes, "--tmpfs", "/tmp"]  # noqa: S108
    arguments += ["--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp"]  # noqa: S108
    for folder in settings.folders:
        arguments += ["--size", tmp_bytes, "--tmpfs", folder]
    arguments += ["--size", str(settings.disk_mb * _MB), "--tmpfs", WORKSPACE]
    return [*arguments, "--remount-ro", "/", "--chdir", WORKSPACE, "--seccomp", str(seccomp), "--"]


def system_folders(settings: HostSettings) -> List[str]:
    """The arguments that show a slot the machine's programs, as they are laid out here and now."""
    arguments = ["--ro-bind", "/usr", "/usr", "--dir", "/etc"]
    for name in _TOP_LEVEL:
        path = "/" + name
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    names = _ETC + _ETC_WITH_NETWORK if settings.allow_network else _ETC
    for path in ["/etc/" + name for name in names] + list(settings.readonly_paths):
        if os.path.exists(path):
            arguments += ["--ro-bind", os.path.realpath(path), path]
    return arguments
