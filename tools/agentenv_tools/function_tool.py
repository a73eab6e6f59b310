"""Tools made from annotated Python functions: trusted code of the environment's author, run in the driver."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from typing import TYPE_CHECKING, Any, TypeVar, final, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic_core import to_json

from agentenv_tools.arguments import describe, validate
from agentenv_tools.base import Tool, ToolContext
from agentenv_tools.docstrings import parse_docstring
from agentenv_tools.errors import ToolConfigError
from agentenv_tools.schema import ToolResult, ToolSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of an annotated function, sync or async.

        @tool
        async def lookup(word: str, limit: int = 3) -> str:
            \"\"\"Look a word up in the dictionary.

            Args:
                word: The word to look for.
                limit: How many meanings to give at most.
            \"\"\"

    The schema comes from the annotations, the docstring (Google style `Args:` or `:param name:`)
    and the defaults. A parameter annotated `ToolContext` is not shown to the model; it gets the
    call's context. What the function returns is the output: text as it is, `None` as nothing, a
    `ToolResult` as it is, anything else as JSON.

    Raises `TypeError` for a parameter without annotation, `*args`, `**kwargs`, a positional-only
    parameter or a generator; `ToolConfigError` for a parameter type that has no schema.
    """

    def decorate(function: Callable[..., Any]) -> FunctionTool:
        return FunctionTool(function, name=name, description=description)

    return decorate if function is None else decorate(function)


@final
class FunctionTool(Tool[BaseModel]):
    """A function as a tool; calling the object calls the function.

    An async function that overruns its deadline is cancelled. A sync one runs on a thread of its
    own, so that a slow one holds up nobody, but a thread cannot be ended: after its deadline it
    runs on unheard.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{_name_of(function)} is a generator; a tool returns one value")
        self.function = function
        self._is_async = inspect.iscoroutinefunction(function)
        documented = parse_docstring(inspect.getdoc(function) or "")
        self._context_name, self._fields = _parameters(function)
        self._model, parameters, required = _describe(function, self._fields, documented.parameters)
        self.schema = ToolSchema(
            name or _name_of(function), description or documented.text, parameters, required
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, for direct use."""
        return self.function(*args, **kwargs)

    def validate(self, arguments: Mapping[str, Any]) -> BaseModel:
        """See `Tool.validate`."""
        return validate(self._model, self.schema.name, arguments)

    async def run(self, arguments: BaseModel, ctx: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        given = arguments.model_fields_set
        named = {
            name: getattr(arguments, field)
            for name, field in self._fields.items()
            if field in given
        }
        if self._context_name is not None:
            named[self._context_name] = ctx
        if self._is_async:
            return _as_result(await self.function(**named))
        return _as_result(await _on_own_thread(lambda: self.function(**named)))


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _parameters(function: Callable[..., Any]) -> tuple[str | None, dict[str, str]]:
    """The name of the context parameter, and the model's field name for each of the others.

    Fields have names of their own because a parameter may be called `json` or `_x`, which a model's
    field may not.
    """
    context_name: str | None = None
    fields: dict[str, str] = {}
    hints = _hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        _check_parameter(function, parameter, annotated=name in hints)
        if hints[name] is ToolContext:
            context_name = name
        else:
            fields[name] = f"parameter_{len(fields)}"
    return context_name, fields


def _check_parameter(
    function: Callable[..., Any], parameter: inspect.Parameter, *, annotated: bool
) -> None:
    where = f"parameter {parameter.name!r} of tool {_name_of(function)!r}"
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise TypeError(f"{where}: *args and **kwargs have no schema; name each parameter")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise TypeError(f"{where} is positional-only; a model passes arguments by name")
    if not annotated:
        raise TypeError(f"{where} has no annotation; add one, such as {parameter.name}: str")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        # ToolContext is often imported for annotations only and is then missing at run time.
        return get_type_hints(function, localns={"ToolContext": ToolContext}, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"an annotation of tool {_name_of(function)!r} cannot be resolved: {error}; "
            "import the type at run time and define it at module level"
        ) from error


def _model(
    function: Callable[..., Any], fields: Mapping[str, str], texts: Mapping[str, str]
) -> type[BaseModel]:
    hints = _hints(function)
    parameters = inspect.signature(function).parameters
    definitions: dict[str, Any] = {}
    for name, field in fields.items():
        default = parameters[name].default
        options: dict[str, Any] = {"alias": name}
        if default is not inspect.Parameter.empty:
            options["default"] = default
        if name in texts:
            options["description"] = texts[name]
        definitions[field] = (hints[name], Field(**options))
    config = ConfigDict(extra="forbid")
    model: type[BaseModel] = create_model(_name_of(function), __config__=config, **definitions)
    return model


def _describe(
    function: Callable[..., Any], fields: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[type[BaseModel], dict[str, Any], list[str]]:
    try:
        model = _model(function, fields, texts)
        return model, *describe(model)
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema) as error:
        raise ToolConfigError(
            f"a parameter of tool {_name_of(function)!r} has a type without a JSON schema: {error.message}"
        ) from error


def _as_result(value: object) -> ToolResult:
    if isinstance(value, ToolResult):
        return value
    if value is None:
        return ToolResult(success=True)
    text = value if isinstance(value, str) else to_json(value, inf_nan_mode="strings").decode()
    return ToolResult(success=True, output=text)


async def _on_own_thread(work: Callable[[], T]) -> T:
    """Run `work` on a thread made for it. A pool's threads could all be held by calls that never return."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if not answer.done():
            answer.set_result((value, error))

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(work)
        except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=run, name="agentenv-tool", daemon=True).start()
    value, error = await answer
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # None only where T admits it
