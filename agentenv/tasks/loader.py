"""Reading task directories: everything that is wrong with one is found and told at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from agentenv.tasks.compose import COMPOSE_FILES, Compose, read_compose
from agentenv.tasks.directory import Profile, StepInput, TaskDirectory
from agentenv.tasks.errors import TaskFormatError
from agentenv.tasks.files import (
    MAX_CONTEXT_FILE_BYTES,
    InputFile,
    checksum,
    contained_file,
    files_below,
    read_text,
)
from agentenv.tasks.ignoring import IGNORE_FILE, IgnoreRules
from agentenv.tasks.models import AgentTable, Step, TaskConfig, VerifierTable, unknown_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

TASK_FILE = "task.toml"
INSTRUCTION = "instruction.md"
TRAJECTORY = "trajectory.json"
DEFAULT_IMAGE = "ubuntu:22.04"
"""Of tasks in the AgentRunner profile."""
_CANARY = re.compile(r"^\s*(<!--.*canary.*-->|#.*canary.*)\s*$", re.IGNORECASE)
_AGENT_RUNNER_DEFAULTS: dict[str, dict[str, Any]] = {
    "agent": {"timeout_sec": 120.0},
    "verifier": {"timeout_sec": 120.0},
    "environment": {"cpus": 1, "memory_mb": 2048, "storage_mb": 10240},
}
ProfileName = Literal["harbor", "agent_runner"]


def load_task(path: str | Path, *, profile: ProfileName | None = None) -> TaskDirectory:
    """The task in a directory. Blocks on its files; from asynchronous code call it in a thread.

    `profile` None: by the file. `schema_version` or `[task]` make it a Harbor task, `version` alone one of
    `AgentRunner`. Raises `TaskFormatError` with every problem that was found.
    """
    return _Loading(Path(path), profile).task()


def discover_tasks(directory: str | Path, pattern: str = "**/task.toml") -> list[Path]:
    """The task directories below `directory`, sorted: those that hold a file that matches `pattern`."""
    return sorted({found.parent for found in Path(directory).glob(pattern) if found.is_file()})


def without_canary(instruction: str) -> str:
    """An instruction without the marks in front that only search engines and crawlers are meant to see."""
    lines = instruction.splitlines(keepends=True)
    start = 0
    while start < len(lines) and _CANARY.match(lines[start]):
        start += 1
    if start:
        while start < len(lines) and not lines[start].strip():
            start += 1
    return "".join(lines[start:])


class _Loading:
    """One directory being read."""

    def __init__(self, path: Path, profile: ProfileName | None) -> None:
        self._given = path
        self._root = path.resolve()
        self._wanted = profile
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._files: list[InputFile] = []
        """Everything that the checksum is over, by its name in the task directory."""

    def task(self) -> TaskDirectory:
        if not self._root.is_dir():
            raise TaskFormatError([f"{self._given}: no directory"])
        self._toml, self._profile = self._read_toml()
        self._config = self._validated()
        config = self._config
        self._warnings += [f"{TASK_FILE}: {key} is not known" for key in unknown_keys(config)]
        environment = self._environment()
        steps = tuple(self._step(step) for step in config.steps) or (self._single_step(),)
        compose = self._compose()
        prior = self._prior_trajectory()
        self._note(TASK_FILE)
        self._raise_problems()
        return TaskDirectory(
            path=self._root,
            profile=self._profile,
            config=config,
            name=config.task.name if config.task is not None else self._root.name,
            steps=steps,
            environment_files=tuple(environment),
            dockerfile=self._environment_file("Dockerfile"),
            compose=compose,
            prior_trajectory=prior,
            checksum=self._checksum(),
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    # ---- task.toml ----

    def _read_toml(self) -> tuple[dict[str, Any], Profile]:
        text = read_text(self._root, TASK_FILE)
        if text is None:
            raise TaskFormatError([f"{TASK_FILE}: there is none in {self._given}"])
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            end = f"at line {len(text.splitlines())}, the end of the document"
            reason = str(error).replace("at end of document", end)
            raise TaskFormatError([f"{TASK_FILE}: {reason}"]) from error
        except ValueError as error:  # a number of thousands of digits
            reason = str(error).partition(";")[0]
            raise TaskFormatError([f"{TASK_FILE}: {reason}"]) from error
        except RecursionError:
            raise TaskFormatError([f"{TASK_FILE}: tables or arrays nested too deep"]) from None
        return values, self._profile_of(values)

    def _profile_of(self, values: dict[str, Any]) -> Profile:
        if self._wanted is not None:
            return Profile(self._wanted)
        if "schema_version" in values or "task" in values or "version" not in values:
            return Profile.HARBOR
        return Profile.AGENT_RUNNER

    def _validated(self) -> TaskConfig:
        values = self._toml
        if self._profile is Profile.AGENT_RUNNER:
            values = _with_agent_runner_defaults(values)
            table = values["environment"]
            if isinstance(table, dict) and not table.get("docker_image"):
                own = (self._root / "environment" / "Dockerfile").exists() or self._compose_file()
                table.update({} if own else {"docker_image": DEFAULT_IMAGE})
        try:
            return TaskConfig.model_validate(values)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            raise TaskFormatError([_sentence(fault) for fault in faults]) from None

    # ---- parts ----

    def _environment(self) -> list[InputFile]:
        if not (self._root / "environment").is_dir():
            if self._config.environment.docker_image is None:
                self._problems.append(
                    f"environment: no such folder, and {TASK_FILE} names no environment.docker_image"
                )
            return []
        return self._folder("environment", max_file_bytes=MAX_CONTEXT_FILE_BYTES)

    def _environment_file(self, name: str) -> Path | None:
        path = self._root / "environment" / name
        return path if path.is_file() else None

    def _compose_file(self) -> Path | None:
        found = (self._environment_file(name) for name in COMPOSE_FILES)
        return next((path for path in found if path is not None), None)

    def _compose(self) -> Compose | None:
        path = self._compose_file()
        if path is None or self._problems:
            return None
        try:
            compose = read_compose(self._root, f"environment/{path.name}")
        except TaskFormatError as error:
            self._problems += error.problems
            return None
        self._warnings += compose.warnings
        return compose

    def _prior_trajectory(self) -> Path | None:
        names = [TRAJECTORY]
        if self._config.steps:
            names.insert(0, f"steps/{self._config.steps[0].name}/{TRAJECTORY}")
        for name in names:
            path = self._file(name)
            if path is not None:
                self._note(name)
                return path
        return None

    def _single_step(self) -> StepInput:
        return self._step_input(None, "", self._config.agent, self._config.verifier)

    def _step(self, step: Step) -> StepInput:
        folder = f"steps/{step.name}/"
        if not (self._root / folder).is_dir():
            self._problems.append(f"{folder.rstrip('/')}: no such folder")
        agent = _laid_over(self._config.agent, step.agent)
        verifier = _laid_over(self._config.verifier, step.verifier)
        env = {**self._config.verifier.env, **step.verifier.env}
        return self._step_input(step, folder, agent, verifier.model_copy(update={"env": env}))

    def _step_input(
        self, step: Step | None, folder: str, agent: AgentTable, verifier: VerifierTable
    ) -> StepInput:
        config = self._config
        tests = self._folder_with_step("tests", folder)
        solution = self._folder_with_step("solution", folder)
        workdir = self._optional_folder(f"{folder}workdir") if folder else []
        return StepInput(
            name=step.name if step is not None else None,
            instruction=self._instruction(folder),
            agent=agent,
            verifier=verifier,
            min_reward=step.min_reward if step is not None else None,
            healthcheck=step.healthcheck if step is not None else None,
            artifacts=config.artifacts + (step.artifacts if step is not None else ()),
            tests=tuple(tests),
            test_script=self._test_script(tests, folder, verifier),
            solution=tuple(solution),
            solution_script=self._script(solution, "solve", config.environment.os),
            workdir=tuple(workdir),
            setup_script=_named(workdir, "setup.sh"),
        )

    def _instruction(self, folder: str) -> str:
        name = f"{folder}{INSTRUCTION}"
        try:
            text = read_text(self._root, name)
        except TaskFormatError as error:
            self._problems += error.problems
            return ""
        if text is None:
            self._problems.append(f"{name}: there is none")
            return ""
        self._note(name)
        return without_canary(text)

    def _test_script(
        self, tests: list[InputFile], folder: str, verifier: VerifierTable
    ) -> str | None:
        own = verifier.environment
        script = self._script(tests, "test", (own or self._config.environment).os)
        if script is None and not self._tests_are_optional(verifier):
            kind = "bat" if (own or self._config.environment).os == "windows" else "sh"
            places = [f"tests/test.{kind}"] + ([f"{folder}tests/test.{kind}"] if folder else [])
            hidden = any((self._root / place).is_file() for place in places)
            reason = f"excluded by a {IGNORE_FILE}" if hidden else "there is none"
            self._problems.append(f"{' or '.join(places)}: {reason}")
        return script

    def _tests_are_optional(self, verifier: VerifierTable) -> bool:
        if self._profile is Profile.AGENT_RUNNER:
            return True
        if verifier.mode != "separate" or verifier.environment is None:
            return False
        bundled = ("Dockerfile", *COMPOSE_FILES)
        return verifier.environment.docker_image is not None or any(
            (self._root / "tests" / name).is_file() for name in bundled
        )

    @staticmethod
    def _script(files: Iterable[InputFile], stem: str, system: str) -> str | None:
        return _named(files, f"{stem}.bat" if system == "windows" else f"{stem}.sh")

    # ---- files ----

    def _folder_with_step(self, name: str, folder: str) -> list[InputFile]:
        """The files of the task's own folder, those of the step's folder in place of equal names."""
        shared = self._optional_folder(name)
        if not folder:
            return shared
        own = self._optional_folder(f"{folder}{name}")
        together = {file.name: file for file in (*shared, *own)}
        return [together[key] for key in sorted(together)]

    def _optional_folder(self, name: str) -> list[InputFile]:
        return self._folder(name) if (self._root / name).is_dir() else []

    def _folder(self, name: str, **limits: int) -> list[InputFile]:
        ignored = IgnoreRules(self._root, name)
        filtered = name.rpartition("/")[2] in ("tests", "solution")
        files, problems = files_below(
            self._root,
            self._root / name,
            keeps=ignored.keeps if filtered else lambda _: True,
            **limits,
        )
        self._problems += problems + ignored.problems
        for file in files:
            self._files.append(
                InputFile(f"{name}/{file.name}", file.path, file.size, file.executable)
            )
        return files

    def _file(self, name: str) -> Path | None:
        try:
            return contained_file(self._root, name)
        except TaskFormatError as error:
            self._problems += error.problems
            return None

    def _note(self, name: str) -> None:
        path = self._root / name
        self._files.append(InputFile(name, path, path.stat().st_size, executable=False))

    def _checksum(self) -> str:
        unique = {file.name: file for file in self._files}
        try:
            return checksum(unique[name] for name in sorted(unique))
        except OSError as error:
            raise TaskFormatError(
                [f"{error.filename}: cannot be read: {error.strerror}"]
            ) from error

    def _raise_problems(self) -> None:
        if self._problems:
            raise TaskFormatError(list(dict.fromkeys(self._problems)))


def _with_agent_runner_defaults(values: dict[str, Any]) -> dict[str, Any]:
    filled = dict(values)
    for name, defaults in _AGENT_RUNNER_DEFAULTS.items():
        table = values.get(name, {})
        filled[name] = (
            {**_unless_legacy(defaults, table), **table} if isinstance(table, dict) else table
        )
    return filled


def _unless_legacy(defaults: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`memory` and `storage` stand for keys that have a default."""
    return {key: value for key, value in defaults.items() if key.removesuffix("_mb") not in table}


def _laid_over(below: Any, above: Any) -> Any:
    """A step's table with the task's values where it is silent."""
    own = {name: getattr(above, name) for name in above.model_fields_set}
    return below.model_copy(update=own)


def _named(files: Iterable[InputFile], name: str) -> str | None:
    return next((file.name for file in files if file.name == name), None)


def _sentence(fault: Any) -> str:
    parts = (str(part) for part in fault["loc"])
    place = ".".join(part for part in parts if not part.startswith(("function-", "dict[")))
    message = fault["msg"].removeprefix("Value error, ")
    return f"{TASK_FILE}: {place}: {message}" if place else f"{TASK_FILE}: {message}"
