"""An environment for the command line: its commands run in sandboxes, its model is an engine somewhere."""

from typing import Any

from agentenv.runtime import EnvRuntime
from agentenv.tokens.renderer import load_renderer
from tests.agentenv.fake_env import TOKENIZER, EchoEnv


class WatchedEnv(EchoEnv):
    """`EchoEnv` with the backend and the servers that its settings name."""

    def __init__(self, config: Any, servers: Any, **more: Any) -> None:
        super().__init__(config, servers, runtime=object())  # type: ignore[arg-type]
        renderer = load_renderer(TOKENIZER, "qwen3")
        self.runtime = EnvRuntime(config, servers, self.tools, renderer=renderer)
