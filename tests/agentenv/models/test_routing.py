import logging
from pathlib import Path

import pytest

from agentenv.errors import ConfigError, PolicyError
from agentenv.models import ChatModelSettings, Provider, chat_policy, route_model
from agentenv.models.keys import find_key, load_environ
from agentenv.testing import FakeProviders, running_app
from tests.agentenv.models.served import ENVIRON, PARAMS


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        (
            "gemini/gemini-2.5-computer-use-preview-10-2025",
            Provider.GOOGLE,
            "gemini-2.5-computer-use-preview-10-2025",
        ),
        ("gemini-2.5-pro", Provider.GOOGLE, "gemini-2.5-pro"),
        ("my-gemini-clone", Provider.GOOGLE, "my-gemini-clone"),
        ("claude-sonnet-4-20250514", Provider.ANTHROPIC, "claude-sonnet-4-20250514"),
        ("anthropic/claude-x", Provider.ANTHROPIC, "claude-x"),
        ("bedrock/meta.llama", Provider.BEDROCK, "meta.llama"),
        ("us.anthropic.claude-v2:0", Provider.BEDROCK, "us.anthropic.claude-v2:0"),
        ("openai/computer-use-preview", Provider.OPENAI, "computer-use-preview"),
        ("computer-use-preview", Provider.OPENAI, "computer-use-preview"),
        ("gpt-5", Provider.OPENAI, "gpt-5"),
        ("o3-mini", Provider.OPENAI, "o3-mini"),
        ("openai/anything", Provider.OPENAI, "anything"),
    ],
)
def test_a_name_means_a_provider(name: str, provider: Provider, model: str):
    assert route_model(name) == route_model(name, base_url="http://x/v1")
    assert (route_model(name).provider, route_model(name).model) == (provider, model)


def test_any_other_name_needs_an_address():
    assert route_model("org/model", base_url="http://x/v1").provider is Provider.COMPATIBLE
    assert route_model("compatible/claude-x", base_url="http://x/v1").model == "claude-x"
    for name in ("org/model", "opus", "", "/", "compatible/x"):
        with pytest.raises(ConfigError, match=r"provider|base_url"):
            route_model(name)


# ---- keys


def test_keys_come_from_the_environment_and_then_from_the_file(tmp_path: Path):
    file = tmp_path / ".env"
    file.write_text("OPENAI_API_KEY=from-file\nexport ANTHROPIC_API_KEY='quoted'\nBROKEN\n")
    environ = load_environ(file, {"OPENAI_API_KEY": "from-environment"})
    openai, anthropic = find_key(Provider.OPENAI, environ), find_key(Provider.ANTHROPIC, environ)
    assert openai is not None
    assert anthropic is not None
    assert openai.get_secret_value() == "from-environment"
    assert anthropic.get_secret_value() == "quoted"
    assert "quoted" not in repr(anthropic)


def test_either_name_of_googles_key_will_do():
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        assert find_key(Provider.GOOGLE, {name: "k"}) is not None


def test_a_file_that_is_no_env_file_is_refused(tmp_path: Path):
    file = tmp_path / ".env"
    file.write_bytes(b"\xff\xfe=1\n")
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load_environ(file, {})
    file.write_bytes(b"x" * 1_000_001)
    with pytest.raises(ConfigError, match="larger"):
        load_environ(file, {})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt-4o", "OPENAI_API_KEY"),
        ("claude-x", "ANTHROPIC_API_KEY"),
        ("gemini/x", "GEMINI_API_KEY or GOOGLE_API_KEY"),
        ("bedrock/x", "AWS_REGION|AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_missing_key_is_named_before_anything_starts(model: str, said: str):
    with pytest.raises(ConfigError, match=said):
        chat_policy(model, environ={}, env_file=None)


def test_bedrock_needs_a_region():
    environ = {k: v for k, v in ENVIRON.items() if k != "AWS_REGION"}
    with pytest.raises(ConfigError, match="AWS_REGION"):
        chat_policy("bedrock/x", environ=environ, env_file=None)


async def test_the_key_reaches_the_server_and_no_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    providers = FakeProviders(lambda request: "Hi.")
    async with running_app(providers) as running:
        for model, url in (
            ("gpt-4o", f"{running.root_url}/v1"),
            ("claude-sonnet-4-20250514", running.root_url),
            ("gemini-2.5-flash", running.root_url),
        ):
            policy = chat_policy(model, environ=ENVIRON, env_file=None, base_url=url)
            await policy.start()
            await policy.chat([{"role": "user", "content": "x"}], PARAMS, trajectory_id="t")
            await policy.close()
    sent = [" ".join(request.headers.values()) for request in providers.requests]
    for key, headers in zip(
        ("canary-openai", "canary-anthropic", "canary-gemini"), sent, strict=True
    ):
        assert key in headers
    assert "canary" not in caplog.text


async def test_a_bearer_token_will_do_for_bedrock_and_never_goes_out_in_the_clear():
    providers = FakeProviders(["Hi."])
    environ = {"AWS_BEARER_TOKEN_BEDROCK": "canary-token", "AWS_REGION": "eu-west-1"}
    async with running_app(providers) as running:
        policy = chat_policy(
            "bedrock/x.y", environ=environ, env_file=None, base_url=running.root_url, max_attempts=1
        )
        await policy.start()
        with pytest.raises(PolicyError, match="Bearer authorization requires an HTTPS endpoint"):
            await policy.chat([{"role": "user", "content": "x"}], PARAMS, trajectory_id="t")
        await policy.close()
    assert not providers.requests


async def test_the_address_may_come_from_the_environment():
    providers = FakeProviders(["Hi."])
    async with running_app(providers) as running:
        environ = {**ENVIRON, "ANTHROPIC_BASE_URL": running.root_url}
        policy = chat_policy("claude-sonnet-4-20250514", environ=environ, env_file=None)
        await policy.start()
        await policy.chat([{"role": "user", "content": "x"}], PARAMS, trajectory_id="t")
        await policy.close()
    assert providers.delivered == 1


def test_deadlines_have_an_order():
    with pytest.raises(ValueError, match="attempt_timeout_s=20 is over timeout_s=10"):
        ChatModelSettings(timeout_s=10, attempt_timeout_s=20)


def test_settings_mask_their_key():
    assert "canary" not in repr(ChatModelSettings(api_key="canary"))  # type: ignore[arg-type]
