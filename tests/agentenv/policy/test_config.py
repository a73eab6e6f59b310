from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from agentenv.errors import ConfigError
from agentenv.policy import APIServerConfig, ServerBaseline, build_policy
from agentenv.policy.config import resolve_servers
from agentenv.policy.router import PolicyRouter
from agentenv.policy.server import EngineServer

KEY = "sk-canary-7f3a"


def test_the_defaults_are_those_users_of_atropos_know():
    config = APIServerConfig()
    assert config.model_dump(include=set(ServerBaseline.model_fields)) == {
        "timeout": 1200.0,
        "num_max_requests_at_once": 512,
        "num_requests_for_eval": 64,
        "model_name": "default",
        "rolling_buffer_length": 1000,
        "server_type": "openai",
        "tokenizer_name": "none",
    }
    assert (config.api_key, config.base_url) == (SecretStr(""), "")
    assert (config.n_kwarg_is_ignored, config.health_check) == (False, True)


def test_the_api_key_shows_in_no_repr_and_no_dump():
    config = APIServerConfig(api_key=SecretStr(KEY), base_url="http://localhost:1")
    shown = (repr(config), str(config), str(config.model_dump()), config.model_dump_json())
    assert not any(KEY in text for text in shown)
    assert config.api_key.get_secret_value() == KEY


def test_trl_is_refused_with_the_reason():
    with pytest.raises(ValidationError, match="returns no log-prob"):
        APIServerConfig.model_validate({"server_type": "trl"})


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "/v1"])
def test_a_base_url_that_is_no_address_is_refused(url):
    with pytest.raises(ValidationError, match="base_url"):
        APIServerConfig(base_url=url)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"max_attempts": 0},
        {"num_max_requests_at_once": 0},
        {"tiemout": 3},
    ],
)
def test_a_value_that_cannot_work_or_an_unknown_key_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        APIServerConfig(**wrong)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_engines_own_routes_are_found_with_and_without_v1(url):
    assert APIServerConfig(base_url=url).root_url == "http://h:1"


def test_the_tokenizer_is_the_models_unless_named():
    assert APIServerConfig(model_name="m").tokenizer == "m"
    assert APIServerConfig(model_name="m", tokenizer_name="t").tokenizer == "t"


def test_one_server_config_is_one_server_and_a_baseline_is_four_local_ones():
    one = APIServerConfig(base_url="http://h:1")
    assert resolve_servers(one) == [one]
    four = resolve_servers(ServerBaseline(server_type="vllm", model_name="m"))
    assert [config.base_url for config in four] == [
        f"http://localhost:{port}/v1" for port in (9004, 9005, 9006, 9007)
    ]
    assert {(config.server_type, config.model_name) for config in four} == {("vllm", "m")}


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ([], "no inference server"),
        ([APIServerConfig(server_type="vllm")], "has no base_url"),
        (
            [
                APIServerConfig(server_type="vllm", base_url="http://h:1"),
                APIServerConfig(server_type="openai", base_url="http://h:2"),
            ],
            "cannot serve one policy",
        ),
        (
            [
                APIServerConfig(server_type="transformers"),
                APIServerConfig(server_type="vllm", base_url="http://h:1"),
            ],
            "only server",
        ),
    ],
)
def test_servers_that_make_no_policy_are_refused(configs, says):
    with pytest.raises(ConfigError, match=says):
        build_policy(configs)


async def test_openai_servers_make_a_policy_without_tokens():
    policy = build_policy([APIServerConfig(base_url="http://h:1")])
    assert isinstance(policy, PolicyRouter)
    assert not policy.returns_tokens


def test_a_user_in_the_address_beside_a_key_is_refused_without_telling_either():
    with pytest.raises(ValueError, match="one of them"):
        APIServerConfig(base_url="http://bob:hunter2@host/v1", api_key=SecretStr("k"))


def test_messages_and_statistics_of_a_server_hold_no_password():
    server = EngineServer(APIServerConfig(base_url="http://bob:hunter2@host/v1"))
    assert server.stats().url == "http://***@host"
