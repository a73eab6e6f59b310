"""Tools made from functions."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agentenv_tools import (
    FunctionTool,
    ToolArgumentsError,
    ToolConfigError,
    ToolContext,
    ToolResult,
    tool,
)
from agentenv_tools.docstrings import parse_docstring


class Point(BaseModel):
    x: int
    y: int = 0


class Tree(BaseModel):
    children: list["Tree"]


class Color(StrEnum):
    RED = "red"


def context() -> ToolContext:
    async def acquire() -> float:
        return 0.0

    async def send(_request: object) -> Any:
        raise AssertionError("nothing is sent here")

    return ToolContext("t1", 30.0, acquire=acquire, send=send)


async def call(function_tool: FunctionTool, **arguments: Any) -> ToolResult:
    return await function_tool.run(function_tool.validate(arguments), context())


# ---- schemas ----


def test_the_schema_comes_from_annotations_defaults_and_docstring():
    @tool
    def search(
        query: str,
        limit: Annotated[int, Field(ge=1)] = 3,
        kind: Literal["a", "b"] | None = None,
    ) -> str:
        """Search the archive.

        Slowly.

        Args:
            query: What to look for,
                in any language.
            limit (int): How many at most.

        Returns:
            Lines.
        """
        return query * limit + (kind or "")

    assert search.schema.name == "search"
    assert search.schema.description == "Search the archive.\n\nSlowly."
    assert search.schema.required == ["query"]
    assert search.schema.parameters == {
        "query": {"type": "string", "description": "What to look for, in any language."},
        "limit": {"type": "integer", "minimum": 1, "default": 3, "description": "How many at most."},
        "kind": {"enum": ["a", "b"], "type": "string"},
    }  # fmt: skip


def test_nested_models_and_enums_are_written_out_in_place():
    @tool
    def draw(points: list[Point], color: Color, title: str = "") -> None: ...

    point = draw.schema.parameters["points"]["items"]
    assert point["properties"] == {
        "x": {"type": "integer"},
        "y": {"type": "integer", "default": 0},
    }
    assert draw.schema.parameters["color"] == {"enum": ["red"], "type": "string"} | {
        key: value for key, value in draw.schema.parameters["color"].items() if key == "const"
    }
    assert "title" in draw.schema.parameters


def test_a_type_that_contains_itself_is_refused():
    with pytest.raises(ToolConfigError, match="Tree contains itself"):

        @tool
        def walk(tree: Tree) -> None: ...


class Opaque:
    pass


def test_a_type_without_a_schema_is_refused():
    def opaque(x: Opaque) -> None: ...

    def callback(x: Callable[[int], int]) -> None: ...

    for function in (opaque, callback):
        with pytest.raises(ToolConfigError, match="has a type without a JSON schema"):
            tool(function)


def test_name_and_description_can_be_given():
    @tool(name="find", description="Finds.")
    def f(x: int) -> int:
        return x

    assert (f.schema.name, f.schema.description) == ("find", "Finds.")
    assert f(3) == 3


def test_a_parameter_may_be_called_like_anything_a_model_class_has():
    @tool
    def odd(json: str, schema: int, copy: bool, _x: str, self: str, model_config: str) -> str:
        return f"{json}{schema}{copy}{_x}{self}{model_config}"

    assert list(odd.schema.parameters) == ["json", "schema", "copy", "_x", "self", "model_config"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, "'x' of tool '<lambda>' has no annotation"),
        (eval("lambda *a: a"), r"\*args and \*\*kwargs have no schema"),
        (eval("lambda **a: a"), r"\*args and \*\*kwargs have no schema"),
        (eval("lambda x, /: x"), "positional-only"),
    ],
)
def test_parameters_without_a_schema_are_refused_when_decorated(function, message):
    with pytest.raises(TypeError, match=message):
        tool(function)


def test_generators_and_unresolvable_annotations_are_refused_when_decorated():
    def generator() -> Any:
        yield 1

    def unknown(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    with pytest.raises(TypeError, match="is a generator"):
        tool(generator)
    with pytest.raises(TypeError, match="cannot be resolved"):
        tool(unknown)


# ---- calls ----


async def test_arguments_are_validated_and_converted_before_the_call():
    @tool
    async def add(point: Point, by: int = 2) -> int:
        assert isinstance(point, Point)
        return point.x + by

    assert (await call(add, point={"x": "1"}, by="3")).output == "4"
    with pytest.raises(ToolArgumentsError, match=r"point\.x: .*; c: unknown argument"):
        await call(add, point={"x": "one"}, c=1)


async def test_defaults_are_the_functions_own():
    @tool
    async def show(items: list[str] = ["a"]) -> str:  # noqa: B006 - this is what is tested
        return ",".join(items)

    assert (await call(show)).output == "a"


@dataclass
class Pair:
    a: int
    b: float


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("text", ToolResult(success=True, output="text")),
        (None, ToolResult(success=True)),
        ({"a": [1]}, ToolResult(success=True, output='{"a":[1]}')),
        (Pair(1, float("inf")), ToolResult(success=True, output='{"a":1,"b":"Infinity"}')),
        (Point(x=1), ToolResult(success=True, output='{"x":1,"y":0}')),
        (ToolResult(success=False, error="no"), ToolResult(success=False, error="no")),
    ],
)
async def test_what_a_function_returns_is_the_output(value, result):
    @tool
    async def give() -> Any:
        return value

    assert await call(give) == result


async def test_sync_functions_run_on_a_thread_each_and_hold_up_nobody():
    barrier = threading.Barrier(80, timeout=30)

    @tool
    def meet() -> str:
        barrier.wait()  # passes only when eighty calls run at once
        return threading.current_thread().name

    results = await asyncio.gather(*(call(meet) for _ in range(80)))
    assert {result.output for result in results} == {"agentenv-tool"}


async def test_what_a_sync_function_raises_arrives():
    @tool
    def fail() -> None:
        raise StopIteration("odd")

    with pytest.raises(RuntimeError, match="StopIteration"):
        await call(fail)


async def test_the_context_parameter_is_given_and_not_shown():
    @tool
    async def who(prefix: str, ctx: ToolContext) -> str:
        return f"{prefix}{ctx.trajectory_id} {ctx.remaining_s() > 0}"

    assert list(who.schema.parameters) == ["prefix"]
    assert (await call(who, prefix="I am ")).output == "I am t1 True"


# ---- docstrings ----


def test_both_docstring_styles_are_read():
    google = parse_docstring("Do.\n\nArgs:\n    a: one\n    **b (int, optional): two: three\n")
    fields = parse_docstring("Do.\n\n:param a: one\n  more\n:param int b: two\n:returns: x\n")
    assert (google.text, google.parameters) == ("Do.", {"a": "one", "b": "two: three"})
    assert (fields.text, fields.parameters) == ("Do.", {"a": "one more", "b": "two"})


@pytest.mark.parametrize("text", ["", "Just text: with a colon.", "Two\n\nparagraphs"])
def test_a_docstring_without_sections_is_all_text(text):
    assert parse_docstring(text).text == text
