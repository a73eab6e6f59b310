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
