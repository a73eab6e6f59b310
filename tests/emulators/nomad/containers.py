"""The driver `docker` of an emulated node: what it makes of a task's configuration, as words for `docker run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INSIDE = {"NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets", "NOMAD_ALLOC_DIR": "/alloc"}
"""Where the folders of a task are in its container."""


def container_name(alloc_id: str) -> str:
    """As the driver names containers."""
    return f"sandboxd-{alloc_id}"


def run_words(
    task: Mapping[str, Any],
    words: list[str],
    environment: Mapping[str, str],
    folders: Mapping[str, Path],
    port: tuple[str, int],
) -> list[str]:
    """`docker run` and its arguments. `words`: the entrypoint and its arguments, with all names filled in."""
    config = task["Config"]
    entrypoint, *arguments = words
    run = ["docker", "run", "--rm", "--name", container_name(environment["NOMAD_ALLOC_ID"])]
    run += ["--memory", f"{task['Resources']['MemoryMB']}m", "--pull", "never"]
    run += ["--publish", f"{port[0]}:{port[1]}:{port[1]}"]
    for name, path in folders.items():
        run += ["--volume", f"{path}:{INSIDE[name]}"]
    for name, value in environment.items():
        if name != "PATH":
            run += ["--env", f"{name}={value}"]
    flags = {"readonly_rootfs": "--read-only", "init": "--init"}
    run += [flag for name, flag in flags.items() if config.get(name)]
    for name, option in (("cap_drop", "--cap-drop"), ("cap_add", "--cap-add")):
        run += [word for value in config.get(name, ()) for word in (option, value)]
    for option in config.get("security_opt", ()):
        run += ["--security-opt", option]
    for name, value in config.get("sysctl", {}).items():
        run += ["--sysctl", f"{name}={value}"]
    for mount in config.get("mounts", ()):
        size = mount["tmpfs_options"]["size"]
        run += ["--mount", f"type=tmpfs,destination={mount['target']},tmpfs-size={size}"]
    single = {"pids_limit": "--pids-limit", "ipc_mode": "--ipc"}
    for name, option in single.items():
        if name in config:
            run += [option, str(config[name])]
    user = ["--user", task["User"]] if task.get("User") else []
    return [*run, *user, "--entrypoint", entrypoint, config["image"], *arguments]
