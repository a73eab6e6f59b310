"""Runs hidden tests beside what an agent left, and prints one line of JSON about them. Standard library only, 3.8+.

Sent to the sandbox and run there as `python3 -I -S supervise.py FOLDER WORKSPACE`, when no process of the agent's
lives. FOLDER is new, and holds `tools.tar.gz` (pytest and run_tests.py) and `hidden.tar.gz` (spec.json and the files
that no agent may change). The tests run in a copy of the workspace in which those are as they should be.

The code under test runs here too, below this process. It cannot write to this process' standard output: nobody can
open the files of a process that is not dumpable. It dies before anything is printed.
"""

from __future__ import annotations

import ctypes
import fnmatch
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from typing import Any, Dict, List, Tuple

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
SHOWN = 100


def main() -> None:
    """Judge, and say so."""
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_DUMPABLE, 0) or libc.prctl(PR_SET_CHILD_SUBREAPER, 1):
        raise SystemExit("this process cannot be protected from the code under test")
    folder, workspace = sys.argv[1:]
    try:
        said = judge(folder, workspace)
    except Exception as error:  # noqa: BLE001 - whatever it is, the tests did not pass
        said = {"problem": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(said) + "\n")


def judge(folder: str, workspace: str) -> Dict[str, Any]:
    """What there is to say of what the agent left."""
    for name in ("tools", "hidden"):
        with tarfile.open(os.path.join(folder, name + ".tar.gz")) as archive:
            archive.extractall(os.path.join(folder, name))  # noqa: S202 - the driver made it
    with open(os.path.join(folder, "hidden", "spec.json"), encoding="utf-8") as file:
        spec = json.load(file)
    repository = os.path.join(folder, "repository")
    copy_unprotected(workspace, repository, spec)
    lay_over(os.path.join(folder, "hidden", "files"), repository)
    canaries = place_canaries(repository, spec["nodes"])
    outcomes, log = run(folder, repository, spec, canaries)
    return report(spec["nodes"], canaries, outcomes, log)


# ---- the repository ----


def copy_unprotected(workspace: str, target: str, spec: Dict[str, Any]) -> None:
    """Everything of the agent's but what it may not change, .git, and what is neither file, folder nor link."""
    for parent, folders, files in os.walk(workspace):
        below = os.path.relpath(parent, workspace)
        os.makedirs(os.path.join(target, below), exist_ok=True)
        kept = []
        for name in folders + files:
            path = os.path.normpath(os.path.join(below, name))
            if is_protected(path, spec) or name == "__pycache__":
                continue
            source = os.path.join(parent, name)
            mode = os.lstat(source).st_mode
            if stat.S_ISDIR(mode):
                kept.append(name)
            elif stat.S_ISLNK(mode) or stat.S_ISREG(mode):
                shutil.copy2(source, os.path.join(target, path), follow_symlinks=False)
        folders[:] = kept


def is_protected(path: str, spec: Dict[str, Any]) -> bool:
    """Whether a path of the workspace is no business of the agent's."""
    name = os.path.basename(path)
    return (
        path == ".git"
        or any(path == one or path.startswith(one + "/") for one in spec["protected"])
        or any(fnmatch.fnmatchcase(name, pattern) for pattern in spec["protected_names"])
    )


def lay_over(source: str, target: str) -> None:
    """Copy a tree into another; whatever there is in its way goes, links above all."""
    for parent, folders, files in os.walk(source):
        below = os.path.join(target, os.path.relpath(parent, source))
        for name in folders + files:
            here, there = os.path.join(parent, name), os.path.join(below, name)
            is_folder = os.path.isdir(here) and not os.path.islink(here)
            if is_folder and os.path.isdir(there) and not os.path.islink(there):
                continue
            if os.path.islink(there) or os.path.isfile(there):
                os.unlink(there)
            elif os.path.isdir(there):
                shutil.rmtree(there)
            if is_folder:
                os.mkdir(there)
            else:
                shutil.copy2(here, there, follow_symlinks=False)


def place_canaries(repository: str, nodes: List[str]) -> List[str]:
    """A test that fails in every file of tests, under a name nobody knows: whoever makes tests pass makes it pass."""
    canaries = []
    for file in sorted({node.split("::")[0] for node in nodes}):
        path = os.path.join(repository, file)
        if file.endswith(".py") and os.path.isfile(path):
            name = "test_" + secrets.token_hex(6)
            with open(path, "a", encoding="utf-8") as opened:
                opened.write("\n\ndef {}():\n    assert {} == {}\n".format(name, 1, 2))
            canaries.append(file + "::" + name)
    return canaries


# ---- the tests ----


def run(
    folder: str, repository: str, spec: Dict[str, Any], canaries: List[str]
) -> Tuple[Dict[str, str], str]:
    """Outcome by node, and the end of what was printed."""
    tools, home = os.path.join(folder, "tools"), os.path.join(folder, "home")
    os.makedirs(home, exist_ok=True)
    log_path = os.path.join(folder, "log")
    results, sending = os.pipe()
    token = secrets.token_hex(16)  # so that nobody who merely finds the pipe can write to it
    order = {
        "nodes": spec["nodes"] + canaries,
        "repository": repository,
        "site": os.path.join(tools, "site"),
        "arguments": spec["arguments"],
        "results": sending,
        "token": token,
    }
    environment = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}
    if not spec["load_plugins"]:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with open(log_path, "wb") as log:
        child = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-B", os.path.join(tools, "run_tests.py")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=repository,
            env=environment,
            pass_fds=[sending],
            start_new_session=True,
        )
    os.close(sending)
    assert child.stdin is not None
    child.stdin.write(json.dumps(order).encode())
    child.stdin.close()
    received = receive(results, child, token, time.monotonic() + spec["timeout_s"])
    end_all()
    os.close(results)
    with open(log_path, "rb") as log:
        log.seek(max(0, os.path.getsize(log_path) - 2000))
        end = log.read(2000).decode("utf-8", "replace")
    return received, end


def receive(
    results: int, child: subprocess.Popen[bytes], token: str, deadline: float
) -> Dict[str, str]:
    """What comes through the pipe until its writer or the time ends; the last word on a node counts, if all agree."""
    os.set_blocking(results, False)
    data = b""
    ended = False
    while time.monotonic() < deadline and len(data) < 50_000_000:
        try:
            piece = os.read(results, 65536)
        except BlockingIOError:
            if ended:
                break
            ended = child.poll() is not None
            time.sleep(0.02)
            continue
        if not piece:
            break
        data += piece
    outcomes: Dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            said, node, outcome = json.loads(line)
        except ValueError:
            continue
        if said != token:
            continue
        outcomes[node] = outcome if outcomes.get(node, outcome) == outcome else "contradictory"
    return outcomes


def end_all() -> None:
    """Kill every process below this one, however deep; orphans come to this one."""
    while True:
        with open("/proc/self/task/{}/children".format(os.getpid()), encoding="ascii") as file:
            children = [int(one) for one in file.read().split()]
        if not children:
            return
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def report(
    nodes: List[str], canaries: List[str], outcomes: Dict[str, str], log: str
) -> Dict[str, Any]:
    """What the driver is told. A node without an outcome did not pass; impossible outcomes void all."""
    found = {node: outcomes.get(node, "missing") for node in nodes}
    others = {node: outcome for node, outcome in found.items() if outcome != "passed"}
    untrue = [outcomes.get(node, "missing") for node in canaries]
    problem = None
    if not others and (not canaries or {"passed", "missing"} & set(untrue)):
        problem = "a test that cannot pass did: the outcomes were forged"
    return {
        "passed": len(found) - len(others),
        "others": dict(list(others.items())[:SHOWN]),
        "problem": problem,
        "log": log if others or problem else "",
    }


if __name__ == "__main__":
    main()
