import os
import re

import pytest

from agentenv.tasks import TaskFormatError, check_task, discover_tasks, load_task
from agentenv.tasks.directory import Profile
from agentenv.tasks.files import MAX_TEXT_BYTES
from agentenv.tasks.loader import without_canary
from tests.agentenv.tasks.task_dirs import PASSING, SOLVING, write_task


def problems_of(path) -> str:
    with pytest.raises(TaskFormatError) as caught:
        load_task(path)
    return "\n".join(caught.value.problems)


def test_a_task_is_loaded_with_its_instruction_tests_and_solution(tmp_path):
    toml = """
schema_version = "1.4"
[task]
name = "someone/answer"
[environment]
docker_image = "python:3.12"
"""
    task = load_task(write_task(tmp_path / "t", toml, {"tests/data/x.txt": "x"}))
    (step,) = task.steps
    assert (task.name, task.short_name, task.profile) == (
        "someone/answer",
        "answer",
        Profile.HARBOR,
    )
    assert step.instruction == "Write 42 to answer.txt.\n"
    assert [file.name for file in step.tests] == ["data/x.txt", "test.sh"]
    assert (step.test_script, step.solution_script) == ("test.sh", "solve.sh")
    assert (step.agent.timeout_sec, step.verifier.timeout_sec) == (None, 600.0)
    assert not task.is_multi_step


def test_the_agent_runner_profile_has_its_own_defaults_and_needs_no_tests(tmp_path):
    toml = 'version = "1.0"\n[environment]\ngui = true\nsetup_commands = ["true"]\n'
    task = load_task(write_task(tmp_path, toml, tests=None))
    environment = task.config.environment
    assert task.profile is Profile.AGENT_RUNNER
    assert (task.steps[0].agent.timeout_sec, task.steps[0].verifier.timeout_sec) == (120.0, 120.0)
    assert environment.docker_image == "ubuntu:22.04"
    assert (environment.cpus, environment.memory_mb, environment.storage_mb) == (1, 2048, 10240)
    assert (environment.gui, environment.setup_commands) == (True, ("true",))
    assert task.steps[0].test_script is None


def test_its_dockerfile_is_used_where_no_image_is_named(tmp_path):
    files = {"environment/Dockerfile": "FROM x\n"}
    task = load_task(write_task(tmp_path, 'version = "1.0"\n', files, tests=None))
    assert task.config.environment.docker_image is None
    assert task.dockerfile == tmp_path.resolve() / "environment" / "Dockerfile"


@pytest.mark.parametrize(
    ("toml", "profile"),
    [
        ('schema_version = "1.0"', Profile.HARBOR),
        ('version = "1.0"\n[task]\nname = "a/b"', Profile.HARBOR),
        ('version = "1.0"', Profile.AGENT_RUNNER),
        ("", Profile.HARBOR),
    ],
)
def test_the_profile_shows_in_the_file_and_can_be_given(tmp_path, toml, profile):
    write_task(tmp_path, f'{toml}\n[environment]\ndocker_image = "x"\n')
    assert load_task(tmp_path).profile is profile
    assert load_task(tmp_path, profile="harbor").profile is Profile.HARBOR


def test_legacy_keys_are_understood_as_the_reference_does(tmp_path):
    toml = """
version = "1.0"
[environment]
memory = "1G"
allow_internet = false
cpus = 2.0
docker_image = "x"
"""
    task = load_task(write_task(tmp_path, toml), profile="harbor")
    environment = task.config.environment
    assert task.config.schema_version == "1.0"
    assert (environment.memory_mb, environment.network, environment.cpus) == (1024, "no-network", 2)
    assert (task.steps[0].verifier.timeout_sec, task.steps[0].agent.timeout_sec) == (600.0, None)


def test_unknown_keys_are_warnings_with_their_place(tmp_path):
    toml = """
schema_version = "1.4"
wrong = 1
[environment]
docker_image = "x"
memroy_mb = 3
[[environment.mcp_servers]]
name = "m"
url = "http://localhost/sse"
colour = "red"
[metadata]
anything = "goes"
"""
    assert check_task(write_task(tmp_path, toml)).warnings == (
        "task.toml: wrong is not known",
        "task.toml: environment.memroy_mb is not known",
        "task.toml: environment.mcp_servers.0.colour is not known",
    )


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("a = [\n1,\n", r"task\.toml: .*line"),
        ("a = " + "[" * 5000, r"task\.toml: "),
        ("[environment]\ncpus = true", r"task\.toml: environment\.cpus: true is no number"),
        ("[environment]\nmemory_mb = 1" + "0" * 5000, r"task\.toml: .*5001 digits"),
        ("[environment]\nstorage_mb = 99999999999999999999", r"environment\.storage_mb: .*1073741824"),
        ("[environment]\ncpus = inf", r"environment\.cpus"),
        ("[agent]\ntimeout_sec = nan", r"agent\.timeout_sec"),
        ("[agent]\ntimeout_sec = 0", r"agent\.timeout_sec"),
        ('[environment]\nmemory = "1G"\nmemory_mb = 512', "say different things"),
        ('[environment]\nmemory = "much"', "is no size"),
        ('[environment]\nallowed_hosts = ["a.b"]', "needs network_mode"),
        ('[verifier]\nallowed_hosts = []', "needs network_mode"),
        ('[environment]\nnetwork_mode = "allowlist"\nallowed_hosts = ["http://a.b"]', "is no host"),
        ('[verifier]\nenvironment_mode = "shared"\n[verifier.environment]\n', "exclude each other"),
        ('[task]\nname = "nameless"', "is no task name"),
        ('[task]\nname = "a/b..c"', "is no task name"),
        ('artifacts = ["../x"]', "is no source"),
        ('artifacts = [{source = "x", destination = "/y"}]', "relative path"),
        ('artifacts = [{source = "x", destination = "manifest.json"}]', "manifest"),
        ('artifacts = [{source = "x", service = "db"}]', "must be absolute"),
        ('[[steps]]\nname = "A"\n[[steps]]\nname = "a"', "share a folder"),
        ('[[steps]]\nname = "a"\n[[steps]]\nname = "a"', "share a folder"),
        ('[[steps]]\nname = "a/b"', "folder's name"),
        ('[[steps]]\nname = "NUL.txt"', "device"),
        ('[[steps]]\nname = "a."', "ends with"),
        ('environment.mcp_servers = [{name = "m", url = "u", headers = {A = "Bearer x"}}]', "a credential"),
    ],
)  # fmt: skip
def test_what_the_format_forbids_is_told_with_its_place(tmp_path, toml, told):
    assert re.search(told, problems_of(write_task(tmp_path, toml)))


def test_every_problem_is_told_at_once(tmp_path):
    write_task(tmp_path, 'schema_version = "1.4"\n', instruction=None, tests=None)
    told = problems_of(tmp_path)
    assert "environment: no such folder" in told
    assert "instruction.md: there is none" in told
    assert "tests/test.sh: there is none" in told


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe", b"x" * (MAX_TEXT_BYTES + 1)], ids=["no-utf8", "oversized"]
)
@pytest.mark.parametrize("name", ["task.toml", "instruction.md"])
def test_texts_that_are_none_or_too_long_are_refused(tmp_path, name, bad):
    write_task(tmp_path, files={name: bad})
    assert problems_of(tmp_path).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "name", ["tests/extra", "solution/extra", "environment/extra", "instruction.md"]
)
def test_links_that_leave_the_directory_are_refused(tmp_path, name):
    (tmp_path / "secret").write_text("outside")
    task = write_task(tmp_path / "task", files={"environment/kept": ""})
    (task / name).unlink(missing_ok=True)
    (task / name).symlink_to(tmp_path / "secret")
    assert f"{name}: leads out of the task directory" in problems_of(task)


def test_links_that_stay_inside_are_followed(tmp_path):
    task = write_task(tmp_path, files={"shared/data.txt": "data"})
    (task / "tests" / "data").symlink_to("../shared")
    assert "data/data.txt" in [file.name for file in load_task(task).steps[0].tests]


def test_links_in_circles_are_refused(tmp_path):
    task = write_task(tmp_path)
    (task / "tests" / "again").symlink_to(".")
    (task / "tests" / "one").symlink_to("two")
    (task / "tests" / "two").symlink_to("one")
    told = problems_of(task)
    assert "tests/again: a link back" in told
    assert "tests/one: cannot be followed" in told


def test_what_is_neither_file_nor_folder_is_refused_unread(tmp_path):
    task = write_task(tmp_path)
    os.mkfifo(task / "tests" / "pipe")
    assert "tests/pipe: neither a file nor a folder" in problems_of(task)


def test_an_oversized_file_is_refused_by_its_size_alone(tmp_path):
    task = write_task(tmp_path)
    with (task / "tests" / "sparse").open("wb") as file:
        file.truncate(100 << 30)
    assert "tests/sparse: 107374182400 bytes" in problems_of(task)


def test_ignore_files_hold_in_tests_and_solution_alone_and_the_nearest_has_the_last_word(tmp_path):
    files = {
        ".harborignore": "*.log\n",
        "tests/.harborignore": "secret/\n!kept.log\n",
        "tests/secret/x": "",
        "tests/kept.log": "",
        "tests/other.log": "",
        "tests/deep/.harborignore": "!other.log\n",
        "tests/deep/other.log": "",
        "solution/run.log": "",
        "environment/build.log": "",
    }
    task = load_task(write_task(tmp_path, files=files))
    assert [file.name for file in task.steps[0].tests] == ["deep/other.log", "kept.log", "test.sh"]
    assert [file.name for file in task.steps[0].solution] == ["solve.sh"]
    assert [file.name for file in task.environment_files] == ["build.log"]


def test_an_ignore_file_may_not_take_the_test_script(tmp_path):
    write_task(tmp_path, files={"tests/.harborignore": "*.sh\n"})
    assert "tests/test.sh: excluded by a .harborignore" in problems_of(tmp_path)


def test_ignored_files_may_be_anything(tmp_path):
    task = write_task(tmp_path, files={"tests/.harborignore": "out\n"})
    (task / "tests" / "out").symlink_to("/etc/passwd")
    assert [file.name for file in load_task(task).steps[0].tests] == ["test.sh"]


def test_the_checksum_is_over_contents_and_nothing_else(tmp_path):
    one = load_task(write_task(tmp_path / "one", files={"README.md": "a"})).checksum
    other = load_task(write_task(tmp_path / "other", files={"README.md": "b"})).checksum
    assert one == other
    changed = load_task(write_task(tmp_path / "other", tests=PASSING)).checksum
    assert changed != one


STEPS = """
schema_version = "1.4"
[environment]
docker_image = "x"
[verifier]
timeout_sec = 50.0
env = {A = "task", B = "task"}
[[steps]]
name = "first"
[steps.verifier]
env = {B = "step"}
[[steps]]
name = "second"
[steps.agent]
timeout_sec = 5.0
"""


def test_steps_are_laid_over_the_task(tmp_path):
    files = {
        "steps/first/instruction.md": "first",
        "steps/second/instruction.md": "second",
        "steps/second/tests/test.sh": PASSING,
        "steps/second/tests/more.txt": "",
        "steps/first/workdir/setup.sh": "true",
        "steps/second/solution/solve.sh": SOLVING + "#",
    }
    first, second = load_task(write_task(tmp_path, STEPS, files, instruction=None)).steps
    assert (first.name, first.instruction, first.setup_script) == ("first", "first", "setup.sh")
    assert first.verifier.env == {"A": "task", "B": "step"}
    assert (first.verifier.timeout_sec, second.agent.timeout_sec) == (50.0, 5.0)
    assert [file.name for file in second.tests] == ["more.txt", "test.sh"]
    assert second.tests[1].path.parts[-4:] == ("steps", "second", "tests", "test.sh")
    assert first.tests[0].path.parts[-2:] == ("tests", "test.sh")


def test_a_step_without_its_folder_is_told(tmp_path):
    told = problems_of(write_task(tmp_path, STEPS, instruction=None))
    assert "steps/first: no such folder" in told
    assert "steps/second/instruction.md: there is none" in told


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<!-- harbor-canary GUID 1 -->\n\nDo it.\n", "Do it.\n"),
        ("# CANARY x\n# another canary\n\n\nDo it.", "Do it."),
        ("# Title\n<!-- canary -->\nDo it.", "# Title\n<!-- canary -->\nDo it."),
        ("Do it. # canary", "Do it. # canary"),
        ("<!-- canary -->", ""),
    ],
)
def test_canaries_in_front_of_an_instruction_are_taken_off(text, left):
    assert without_canary(text) == left


def test_tasks_are_found_below_a_folder(tmp_path):
    for name in ("b", "a/deep"):
        write_task(tmp_path / name)
    (tmp_path / "c").mkdir()
    assert discover_tasks(tmp_path) == [tmp_path / "a/deep", tmp_path / "b"]
    assert discover_tasks(tmp_path, "*/task.toml") == [tmp_path / "b"]


def test_no_task_is_told_as_such(tmp_path):
    assert "no directory" in problems_of(tmp_path / "none")
    assert "task.toml: there is none" in problems_of(tmp_path)
