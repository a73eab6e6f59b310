from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from agentenv.cli.layers import ConfigFile, load_config_file, split_flags
from agentenv.cli.settings import resolve
from agentenv.config import AgentEnvConfig
from agentenv.errors import ConfigError
from agentenv.policy.config import APIServerConfig, ServerBaseline


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Near(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["near"] = "near"
    slots: int = 8
    folder: str = "/tmp"


class Far(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["far"] = "far"
    slots: int = 4
    address: str = "http://far"


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    steps: int = 10
    """How many."""
    share: float = 0.5
    name: str | None = None
    noisy: bool = False
    words: list[str] = ["default"]
    colour: Colour = Colour.RED
    extra: dict[str, int] = {}
    token: SecretStr = SecretStr("")
    place: Near | Far = Field(default_factory=Near, discriminator="type")
    aliased: int = Field(default=1, alias="other")


SERVER = APIServerConfig(base_url="http://one/v1", api_key=SecretStr("canary"))


def _file(tmp_path: Path, text: str) -> ConfigFile:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config_file(path)


def _env(
    *flags: str,
    base: Config | None = None,
    environ: dict[str, str] | None = None,
    file: ConfigFile | None = None,
) -> Any:
    return resolve(base or Config(), [SERVER], flags=flags, environ=environ, file=file).env


def test_flags_win_over_variables_over_the_file_over_config_init(tmp_path):
    base = Config(steps=1, share=0.1, name="init", noisy=False)
    file = _file(tmp_path, "env: {steps: 2, share: 0.2, name: file}")
    environ = {"AGENTENV_ENV__STEPS": "3", "AGENTENV_ENV__SHARE": "0.3"}
    assert _env(base=base).steps == 1
    assert _env(base=base, file=file).steps == 2
    assert _env(base=base, file=file, environ=environ).steps == 3
    resolved = _env("--env.steps", "4", base=base, file=file, environ=environ)
    assert (resolved.steps, resolved.share, resolved.name) == (4, 0.3, "file")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--env.steps", "-1"], "steps", -1),
        (["--env.steps=-1"], "steps", -1),
        (["--env.share", "-1e-3"], "share", -0.001),
        (["--env.noisy"], "noisy", True),
        (["--env.noisy", "true"], "noisy", True),
        (["--env.noisy", "false"], "noisy", False),
        (["--env.noisy=no"], "noisy", False),
        (["--env.words", "a", "b"], "words", ["a", "b"]),
        (["--env.words", "a,b"], "words", ["a", "b"]),
        (["--env.words", '["a,b", "c"]'], "words", ["a,b", "c"]),
        (["--env.words"], "words", []),
        (["--env.words", "only"], "words", ["only"]),
        (["--env.name", "-x y"], "name", "-x y"),
        (["--env.name=--x"], "name", "--x"),
        (["--env.name", "7"], "name", "7"),
        (["--env.name", "null"], "name", None),
        (["--env.name="], "name", ""),
        (["--env.colour", "blue"], "colour", Colour.BLUE),
        (["--env.extra", '{"a": 1}'], "extra", {"a": 1}),
        (["--env.other", "5"], "aliased", 5),
        (["--env.steps", "1", "--env.steps", "2"], "steps", 2),
        (["--env.place.slots", "3"], "place", Near(slots=3)),
        (["--env.place.type", "far"], "place", Far()),
        (["--env.place", '{"type": "far", "slots": 1}'], "place", Far(slots=1)),
        (
            ["--env.place.type", "far", "--env.place.address", "http://x"],
            "place",
            Far(address="http://x"),
        ),
    ],
)
def test_flags_are_read_by_what_the_setting_is(flags, name, value):
    assert getattr(_env(*flags, base=Config(name="old", place=Near(slots=9))), name) == value


def test_a_flag_may_be_written_with_dashes():
    config = resolve(AgentEnvConfig(), [SERVER], flags=["--env.group-size", "3"]).env
    assert config.group_size == 3


def test_changing_the_type_of_a_section_starts_it_anew():
    base = Config(place=Near(slots=9, folder="/data"))
    assert _env("--env.place.type", "far", base=base).place == Far()
    assert _env("--env.place.slots", "2", base=base).place == Near(slots=2, folder="/data")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--env.stepz", "1"],
            r"env\.stepz \(from --env.stepz\): unknown; did you mean env\.steps\?",
        ),
        (["--env.place.slotz", "1"], r"env\.place\.slotz .* did you mean env\.place\.slots\?"),
        (
            ["--env.steps", "many"],
            r"env\.steps = 'many' \(from --env.steps\): .*\(accepted: integer\)",
        ),
        (["--env.steps"], r"env\.steps \(from --env.steps\): one value is expected \(integer\)"),
        (["--env.steps", "1", "2"], r"one value is expected \(integer\), not 2: 1 2"),
        (["--env.steps", "1", "c.yaml"], r"the configuration file comes before the flags"),
        (["--env.colour", "green"], r"env\.colour = 'green' .*\(accepted: red \| blue\)"),
        (["--env.place.type", "moon"], r"env\.place.*'near', 'far'"),
        (
            ["--env.place.address", "x"],
            r"env\.place\.address = 'x' \(from --env.place.address\): not a setting of ",
        ),
        (["--env.share", "nan"], r"env\.share = nan \(from --env.share\): a number is expected"),
        (["--env.extra", "[1]"], r"a JSON object is expected, not '\[1\]'"),
        (["--openai.base_urll", "x"], r"openai\.base_urll .*did you mean openai\.base_url\?"),
    ],
)
def test_what_does_not_fit_is_refused_by_path_value_source_and_what_would(flags, message):
    with pytest.raises(ConfigError, match=message):
        _env(*flags, base=Config(place=Near(slots=9)))


def test_every_problem_is_told_at_once(tmp_path):
    file = _file(tmp_path, "env: {steps: x, shar: 1}\nopenai: {time: 1}")
    with pytest.raises(ConfigError) as caught:
        _env(file=file, environ={"AGENTENV_ENV__NOISE": "1"})
    message = str(caught.value)
    assert "3 settings cannot be used" in message
    for part in ("env.shar (from", "openai.time (from", "env.noise (from AGENTENV_ENV__NOISE)"):
        assert part in message


def test_a_secret_that_does_not_fit_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        resolve(Config(), [SERVER], flags=["--openai.api_key", '["canary-2"]', "--env.steps", "x"])
    assert "canary" not in str(caught.value)


def test_the_list_of_a_field_that_names_a_secret_is_masked_when_it_is_wrong(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resolve(Config(), [SERVER], file=_file(tmp_path, "env: {token: [canary-3]}"))
    assert "env.token = ***" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environ: x", "unknown key 'environ'; did you mean environment"),
        ("- a", "must hold a mapping"),
        ("env: {steps: 1, steps: 2}", "the key 'steps' stands twice"),
        ("env: [", "is no YAML"),
        ("env: 3", "env = 3 .*a mapping is expected"),
        ("environment: 3", "environment must be text"),
        ("slurm: maybe", "slurm = 'maybe'.*true or false"),
        ("env: !!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        _env(file=_file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_config_file(tmp_path / "nowhere.yaml")


def test_an_empty_file_changes_nothing(tmp_path):
    assert _env(file=_file(tmp_path, "")) == Config()


def test_variables_of_other_programs_are_left_alone():
    environ = {
        "AGENTENV_DEBUG": "1",
        "AGENTENV_OTHER__X": "1",
        "HOME": "/",
        "agentenv_env__steps": "9",
    }
    assert _env(environ=environ).steps == 10


def test_variables_reach_nested_settings_and_lists():
    environ = {
        "AGENTENV_ENV__PLACE__TYPE": "far",
        "AGENTENV_ENV__WORDS": "a,b",
        "AGENTENV_ENV__NOISY": "1",
    }
    resolved = _env(environ=environ)
    assert (resolved.place, resolved.words, resolved.noisy) == (Far(), ["a", "b"], True)


def _urls(servers: Any, *flags: str, file: ConfigFile | None = None) -> list[str]:
    resolved = resolve(Config(), servers, flags=flags, file=file)
    return [server.base_url for server in resolved.servers]


def test_a_mapping_of_openai_is_laid_over_every_server(tmp_path):
    two = [SERVER, APIServerConfig(base_url="http://two/v1")]
    file = _file(tmp_path, "openai: {model_name: m}")
    resolved = resolve(Config(), two, file=file, flags=["--openai.timeout", "5"])
    assert [server.base_url for server in resolved.servers] == ["http://one/v1", "http://two/v1"]
    assert {(server.model_name, server.timeout) for server in resolved.servers} == {("m", 5.0)}
    assert resolved.servers[0].api_key.get_secret_value() == "canary"


def test_a_list_of_servers_replaces_those_of_config_init_and_shares_no_key_with_them(tmp_path):
    file = _file(tmp_path, "openai: [{base_url: 'http://a/v1'}, {base_url: 'http://b/v1'}]")
    resolved = resolve(Config(), [SERVER], file=file, environ={"AGENTENV_OPENAI__MODEL_NAME": "m"})
    assert [server.base_url for server in resolved.servers] == ["http://a/v1", "http://b/v1"]
    assert {server.api_key.get_secret_value() for server in resolved.servers} == {""}
    assert {server.model_name for server in resolved.servers} == {"m"}


def test_a_wrong_server_of_a_list_is_named_by_its_number(tmp_path):
    file = _file(tmp_path, "openai: [{base_url: 'http://a/v1'}, {base_url: 'ftp://b', timeot: 3}]")
    with pytest.raises(
        ConfigError, match=r"openai\[1\]\.timeot .*did you mean openai\[1\]\.timeout"
    ):
        _urls([SERVER], file=file)
    file = _file(tmp_path, "openai: [{base_url: 'http://a/v1'}, {timeout: -1}]")
    with pytest.raises(
        ConfigError, match=r"openai\[1\]\.timeout = -1 \(from .*config.yaml\): .*greater than 0"
    ):
        _urls([SERVER], file=file)


def test_one_server_that_is_not_in_a_list_counts():
    assert _urls(SERVER) == ["http://one/v1"]


def test_a_bare_baseline_means_four_local_servers_until_one_is_named():
    baseline = ServerBaseline(model_name="m")
    assert len(_urls(baseline)) == 4
    assert _urls(baseline, "--openai.base_url", "http://x/v1") == ["http://x/v1"]
    assert len(_urls(baseline, "--openai.timeout", "5")) == 4
    assert _urls(baseline, "--openai.server_type", "transformers") == [""]


def test_flags_alone_can_name_a_server():
    assert _urls([], "--openai.base_url", "http://x/v1") == ["http://x/v1"]
    assert _urls([]) == []


def test_the_settings_print_without_secrets():
    assert "canary" not in repr(resolve(Config(token=SecretStr("canary-1")), [SERVER]))


def test_what_was_given_resolves_to_the_same_settings_again():
    flags = ["--env.group_size", "3", "--env.backend.slots", "5", "--env.slots_per_container", "5"]
    first = resolve(AgentEnvConfig(max_containers=2), [SERVER], flags=flags)
    given = ConfigFile(Path("config.yaml"), None, first.given())
    again = resolve(AgentEnvConfig(), [], file=given)
    assert again == first
    assert again.env.model_fields_set == first.env.model_fields_set


def test_flags_of_settings_are_told_from_the_commands_own():
    argv = ["c.yaml", "--env.words", "a", "b", "--run-dir", "r", "--openai.base_url=u", "--plain"]
    assert split_flags(argv) == (
        ["c.yaml", "--run-dir", "r", "--plain"],
        ["--env.words", "a", "b", "--openai.base_url=u"],
    )


def test_flat_names_of_the_predecessor_work_beside_what_config_init_returned(tmp_path):
    base = AgentEnvConfig(slots_per_container=20, group_size=2)
    file = _file(tmp_path, "env: {slots_per_container: 5, max_containers: 3}")
    config = resolve(base, [SERVER], file=file, flags=["--env.max_containers", "4"]).env
    assert (config.backend.slots, config.backend.max_hosts, config.group_size) == (5, 4, 2)


def test_a_nested_backend_is_set_by_flags():
    flags = ["--env.backend.type", "local", "--env.backend.slots", "3"]
    config = resolve(AgentEnvConfig(), [SERVER], flags=flags).env
    assert (config.backend.type, config.backend.slots) == ("local", 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--env.backend.slots", "0"],
            r"env\.backend\.slots = '0' \(from --env.backend.slots\): .*greater",
        ),
        (["--env.backend.type", "moon"], r"backend type 'moon' is not offered"),
        (["--env.backend.slotz", "1"], r"did you mean env\.backend\.slots"),
        (
            ["--env.backend.type", "docker", "--env.backend.run_as_root", "true"],
            r"env\.backend .*: run_as_root true needs slots 1",
        ),
        (["--env.group_size", "0"], r"env\.group_size = '0' .*accepted: integer >= 1"),
        (
            ["--env.turn_timeout_s", "9999"],
            r"turn_timeout_s=9999 must be less than rollout_timeout_s=3600",
        ),
        (["--env.agent_temperature", "nan"], r"env\.agent_temperature = 'nan'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_anything_starts(flags, message):
    with pytest.raises(ConfigError, match=message):
        resolve(AgentEnvConfig(), [SERVER], flags=flags)


def test_annotated_unions_are_understood():
    class Holder(BaseModel):
        place: Annotated[Near | Far, Field(discriminator="type")] = Near()

    assert resolve(Holder(), [], flags=["--env.place.type", "far"]).env.place == Far()
