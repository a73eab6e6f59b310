#!/usr/bin/python3
# mypy: disable-error-code="no-untyped-call"
"""The helper that the client's file calls run in a sandbox: an operation as JSON in the one argument, contents on
standard input or output, an error as JSON on standard error.
"""

import json
import shutil
import stat
import sys
from pathlib import Path

KINDS = (
    (FileNotFoundError, "NotFound"),
    (IsADirectoryError, "IsDirectory"),
    (NotADirectoryError, "NotDirectory"),
    (PermissionError, "PermissionDenied"),
    (FileExistsError, "PathAlreadyExists"),
)


def describe(path):
    found = path.lstat()
    is_link = stat.S_ISLNK(found.st_mode)
    return {
        "name": path.name,
        "path": str(path),
        "type": "symlink" if is_link else "directory" if stat.S_ISDIR(found.st_mode) else "file",
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "permissions": stat.filemode(found.st_mode),
        "owner": str(found.st_uid),
        "group": str(found.st_gid),
        "modified_time": found.st_mtime,
        "symlink_target": str(path.readlink()) if is_link else None,
    }


def read_file(path):
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


def write_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)


def list_files(path):
    entries = [describe(path / name) for name in sorted(entry.name for entry in path.iterdir())]
    sys.stdout.write(json.dumps(entries))


def stat_(path):
    sys.stdout.write(json.dumps(describe(path)))


def make_directory(path, parents=True):
    path.mkdir(parents=parents, exist_ok=parents)


def remove(path, recursive=False):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path) if recursive else path.rmdir()
    else:
        path.unlink()


OPERATIONS = {
    "ReadFile": read_file,
    "WriteFile": write_file,
    "ListFiles": list_files,
    "Stat": stat_,
    "MakeDirectory": make_directory,
    "Remove": remove,
}


def main():
    ((name, arguments),) = json.loads(sys.argv[1]).items()
    if name not in OPERATIONS:
        return {"error_kind": "NotSupported", "message": f"{name} is not emulated"}
    path = Path(arguments.pop("path"))
    try:
        OPERATIONS[name](path, **arguments)
    except OSError as error:
        kind = next((kind for known, kind in KINDS if isinstance(error, known)), "Other")
        return {"error_kind": kind, "message": str(error)}
    return None


if __name__ == "__main__":
    problem = main()
    if problem:
        sys.exit(json.dumps(problem))
