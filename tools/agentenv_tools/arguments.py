"""Arguments of tools as pydantic models: their JSON schema, and their validation in words a model can act on.

Validation is lenient where a reading is the only one possible (`"5"` or `5.0` for an integer,
`"true"` for a boolean) and strict elsewhere: an unknown argument is refused by name, a number is no
string, nothing is guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from agentenv_tools.errors import ToolArgumentsError, ToolConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_PROBLEMS = 5
_MAX_VALUE_CHARS = 80
_VALUES = frozenset(
    {"default", "const", "enum", "examples"}
)  # keys whose content is data, not schema


class ToolArguments(BaseModel):
    """Base of a tool's arguments: one annotated field per parameter, `Field(description=...)` for its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def describe(model: type[BaseModel]) -> tuple[dict[str, Any], list[str]]:
    """The JSON schema of each parameter, and the names of the required ones.

    Nested models are written out in place. Raises `ToolConfigError` for one that contains itself.
    """
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    properties = {
        name: _plain(node, definitions, ()) for name, node in schema.get("properties", {}).items()
    }
    return properties, list(schema.get("required", []))


def validate(model: type[ModelT], tool: str, arguments: Mapping[str, Any]) -> ModelT:
    """The arguments as `model`. Raises `ToolArgumentsError`, which names the fields."""
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise invalid_arguments(tool, [_say(problem) for problem in problems]) from None


def invalid_arguments(tool: str, problems: list[str]) -> ToolArgumentsError:
    """The error for `problems`, each of the form `field: what is wrong`."""
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return ToolArgumentsError(f"Invalid arguments for {tool}: {'; '.join(shown)}")


def shorten(value: object) -> str:
    """A value as it may be quoted in an error."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}..."


def _say(problem: ErrorDetails) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "arguments"
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown argument"
    if problem["type"] == "missing":
        return f"{field}: required, but missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message} (got {shorten(problem['input'])})"


def _plain(node: Any, definitions: dict[str, Any], inside: tuple[str, ...]) -> Any:
    """The schema without titles, references and the `null` branch of a parameter that may be left out."""
    if isinstance(node, list):
        return [_plain(item, definitions, inside) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if reference is not None:
        return _inlined(node, reference.rpartition("/")[2], definitions, inside)
    plain = {
        key: value if key in _VALUES else _plain(value, definitions, inside)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
    }
    return _without_null(plain)


def _inlined(
    node: dict[str, Any], name: str, definitions: dict[str, Any], inside: tuple[str, ...]
) -> Any:
    if name in inside:
        raise ToolConfigError(
            f"the parameter type {name} contains itself, which a tool schema cannot express; "
            "take a JSON string or a dict[str, Any] instead"
        )
    beside = {key: value for key, value in node.items() if key != "$ref"}
    return _plain({**definitions[name], **beside}, definitions, (*inside, name))


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    branches = node.get("anyOf")
    if not branches or "default" not in node or node["default"] is not None:
        return node
    others = [branch for branch in branches if branch != {"type": "null"}]
    if len(others) != 1:
        return node
    rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
    return {**others[0], **rest}
