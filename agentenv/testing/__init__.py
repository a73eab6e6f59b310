"""Fakes that speak the real protocols, for the tests of this project and of environments built on
it.

`FakePolicy` is a policy in memory, `FakeLink` a trajectory server in memory. `FakeEngine` is an inference engine: an
ASGI application that answers as vLLM, SGLang and OpenAI-compatible servers do, with scripted replies, latency and
faults; `running_engine` serves it on a loopback port. `FakeProviders` speaks the protocols of OpenAI, Anthropic,
Gemini and Bedrock, for `running_app`. Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentenv.testing.engine import FakeEngine
    from agentenv.testing.faults import Fault, FaultPlan
    from agentenv.testing.link import FakeLink
    from agentenv.testing.policy import FakePolicy
    from agentenv.testing.providers import FakeProviders, ModelReply
    from agentenv.testing.script import (
        FakeReply,
        FakeRequest,
        Script,
        ScriptExhaustedError,
        position_logprob,
    )
    from agentenv.testing.serving import RunningApp, RunningEngine, running_app, running_engine

__all__ = [
    "FakeEngine",
    "FakeLink",
    "FakePolicy",
    "FakeProviders",
    "FakeReply",
    "FakeRequest",
    "Fault",
    "FaultPlan",
    "ModelReply",
    "RunningApp",
    "RunningEngine",
    "Script",
    "ScriptExhaustedError",
    "position_logprob",
    "running_app",
    "running_engine",
]

_HOMES = {
    "FakeEngine": "engine",
    "FakeLink": "link",
    "FakePolicy": "policy",
    "FakeProviders": "providers",
    "FakeReply": "script",
    "FakeRequest": "script",
    "Fault": "faults",
    "FaultPlan": "faults",
    "ModelReply": "providers",
    "RunningApp": "serving",
    "RunningEngine": "serving",
    "Script": "script",
    "ScriptExhaustedError": "script",
    "position_logprob": "script",
    "running_app": "serving",
    "running_engine": "serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
