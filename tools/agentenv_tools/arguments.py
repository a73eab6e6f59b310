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
_MAX_NODES = 20_000
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
    return parameters_of(model.model_json_schema(by_alias=True))


def parameters_of(schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same of the JSON schema of an object.

    Raises `ToolConfigError` for what is no such schema, refers to what it does not define, or is too large when
    written out.
    """
    properties, required = schema.get("properties", {}), schema.get("required", [])
    definitions = [schema.get("definitions", {}), schema.get("$defs", {})]
    if not all(isinstance(part, dict) for part in (properties, *definitions)):
        raise ToolConfigError("the schema's `properties` and `$defs` must be objects")
    if not isinstance(required, list) or not set(map(str, required)) <= properties.keys():
        raise ToolConfigError("the schema's `required` must list names of `properties`")
    writer = _SchemaWriter({**definitions[0], **definitions[1]})
    try:
        plain = {name: writer.plain(node, ()) for name, node in properties.items()}
    except RecursionError:
        raise ToolConfigError("the schema is nested too deeply") from None
    return plain, list(required)


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


class _SchemaWriter:
    """Writes schemas without titles, references and the `null` branch of a parameter that may be left out."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._left = _MAX_NODES

    def plain(self, node: Any, inside: tuple[str, ...]) -> Any:
        """`node`, found within the definitions named by `inside`."""
        self._left -= 1
        if self._left < 0:
            raise ToolConfigError(f"the schema has more than {_MAX_NODES} parts when written out")
        if isinstance(node, list):
            return [self.plain(item, inside) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            return self._inlined(node, reference, inside)
        plain = {
            key: value if key in _VALUES else self.plain(value, inside)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
        return _without_null(plain)

    def _inlined(self, node: dict[str, Any], reference: str, inside: tuple[str, ...]) -> Any:
        name = reference.rpartition("/")[2]
        if name in inside:
            raise ToolConfigError(
                f"the parameter type {name} contains itself, which a tool schema cannot express; "
                "take a JSON string or a dict[str, Any] instead"
            )
        if not isinstance(self._definitions.get(name), dict):
            raise ToolConfigError(f"the schema refers to {reference!r}, which it does not define")
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return self.plain({**self._definitions[name], **beside}, (*inside, name))


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    branches = node.get("anyOf")
    if not branches or "default" not in node or node["default"] is not None:
        return node
    others = [branch for branch in branches if branch != {"type": "null"}]
    if len(others) != 1:
        return node
    rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
    return {**others[0], **rest}
