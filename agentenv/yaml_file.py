"""Reading YAML files: values of the plain kinds, a key that stands twice refused, models validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from agentenv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, *, most_values: int) -> Any:
    """What YAML text from anywhere holds.

    Raises `ValueError` where it is no YAML, a key stands twice, or there are more than `most_values` values once what
    is named by anchors stands wherever it is referred to.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > most_values:
            raise ValueError(
                f"more than {most_values} values, those of its anchors counted where they are used"
            )
        return loader.construct_document(node)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("lists or mappings nested too deep") from None


def _values_in(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values there are below a node, itself included. Raises `ValueError` for one that holds itself."""
    known = counted.get(id(node))
    if known is not None:
        if not known:
            raise ValueError("an anchor stands for something that it is a part of")
        return known
    counted[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_values_in(each, counted) for pair in node.value for each in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_values_in(each, counted) for each in node.value)
    counted[id(node)] = total
    return total


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; an empty mapping for an empty file. Raises `ConfigError` naming the file."""
    try:
        content = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"configuration file {path} is no YAML: {error}") from error
    return {} if content is None else content


def read_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """A YAML file as a `model`. Raises `ConfigError` naming the file and the keys."""
    content = load_yaml(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        said = "".join(
            f"\n  {'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in problems
        )
        raise ConfigError(f"{path} cannot be used:{said}") from error
