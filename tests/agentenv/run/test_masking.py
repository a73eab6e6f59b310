import pytest
from pydantic import BaseModel, SecretStr

from agentenv.run.masking import is_secret_name, mask_secrets


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "OPENAI_API_KEY",
        "apikey",
        "tool_server_token",
        "authToken",
        "AUTH",
        "Authorization",
        "db-password",
        "modal_secrets",
        "credentials",
        "AWS_SECRET_ACCESS_KEY",
        "privateKeyPem",
    ],
)
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["tokenizer_name", "author", "base_url", "model_name", "group_size", "keyboard"]
)
def test_names_that_only_look_alike_are_not(name):
    assert not is_secret_name(name)


def test_secrets_are_masked_at_any_depth_and_numbers_are_kept():
    class Server(BaseModel):
        api_key: SecretStr = SecretStr("canary-1")
        base_url: str = "https://me:canary-2@host/v1?token=canary-3&x=1"
        max_tokens: int = 7

    config = {
        "openai": [Server()],
        "env": {
            "secrets": {"a": ["canary-4"]},
            "modal_env_vars": "A=1;MY_KEY=canary-5",
            "tokenizer_name": "t",
        },
    }
    masked = mask_secrets(config)
    assert "canary" not in repr(masked)
    assert masked["openai"][0] == {
        "api_key": "***",
        "base_url": "https://***@host/v1?token=***&x=1",
        "max_tokens": 7,
    }
    assert masked["env"] == {
        "secrets": {"a": ["***"]},
        "modal_env_vars": "A=1;MY_KEY=***",
        "tokenizer_name": "t",
    }


def test_an_empty_secret_is_shown_as_empty():
    assert mask_secrets({"api_key": SecretStr("")}) == {"api_key": ""}
