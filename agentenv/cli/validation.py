"""Building models from merged values, and telling what is wrong with them by path, value, source,
and what would fit.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from agentenv.run.masking import MASK, is_secret_name, mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentenv.cli.fields import Setting
    from agentenv.cli.layers import Layer

_SHOWN_CHARS = 80


class Validation:
    """Builds models and collects every problem on the way."""

    def __init__(self, layers: Sequence[Layer], trees: Mapping[str, Setting]) -> None:
        self._layers = layers
        self._trees = trees
        self.problems: list[str] = []

    def build(self, model: type[BaseModel], values: Any, where: str) -> Any:
        """An instance of `model`, or None with its problems noted. `where` is its path in
        messages.
        """
        try:
            instance = model.model_validate(values)
        except ValidationError as error:
            tree = self._trees[where.partition("[")[0]]
            for entry in error.errors(include_url=False):
                self.problems.append(self._describe(entry, values, where, tree))
            return None
        for path in _nan_paths(instance, where):
            self.problems.append(f"{path} = nan{self._origin(path)}: a number is expected")
        return instance

    def switch(self, name: str) -> bool:
        """A top-level key of the file that is true or false."""
        for layer in self._layers:
            value = layer.values.get(name, False)
            if not isinstance(value, bool):
                self.problems.append(
                    f"{name} = {value!r}{self._origin(name)}: true or false is expected"
                )
            elif value:
                return True
        return False

    def _describe(self, error: Any, values: Any, where: str, tree: Setting) -> str:
        names, setting, parent = _locate(_whole_loc(error["loc"], tree), values, tree)
        path = ".".join([where, *names])
        message = error["msg"].removeprefix("Value error, ")
        accepts = setting.accepts if setting is not None and not setting.children else ""
        if error["type"] == "extra_forbidden":
            tags = {tag: parent.get(tag) for tag in ("type",) if isinstance(parent, dict)}
            message, accepts = f"not a setting of {'.'.join([where, *names[:-1]])}", ""
            message += f" of type {tags['type']!r}" if tags.get("type") else ""
        accepted = f" (accepted: {accepts})" if accepts else ""
        return f"{path}{_shown(error, names)}{self._origin(path)}: {message}{accepted}"

    def _origin(self, path: str) -> str:
        """Where the value at `path` came from: the last layer that gave it."""
        names = re.sub(r"\[\d+\]", "", path).split(".")
        if len(names) < 2 and names[0] in self._trees:
            return ""
        for layer in reversed(self._layers):
            if _holds(layer.values, names):
                parts = (".".join(names[:end]) for end in range(len(names), 0, -1))
                within = (known for known in layer.origins if known.startswith(f"{path}."))
                known = next((part for part in (*parts, *within) if part in layer.origins), path)
                return f" (from {layer.origins.get(known, known)})"
        return ""


def _whole_loc(loc: Sequence[int | str], tree: Setting) -> Sequence[int | str]:
    """Where an error is, also when a validator of the whole model built a group inside it by
    itself.

    Pydantic then leaves the group's name out.
    """
    if loc and loc[0] not in tree.children:
        for name, child in tree.children.items():
            if any(part in child.children for part in loc) or str(loc[0]) in _tag_values(child):
                return (name, *loc)
    return loc


def _tag_values(setting: Setting) -> set[str]:
    """What tells the models of a group apart."""
    tags = [setting.children[tag].accepts for tag in setting.tags]
    return {value for accepts in tags for value in accepts.split(" | ")}


def _locate(
    loc: Sequence[int | str], values: Any, tree: Setting
) -> tuple[list[str], Setting | None, Any]:
    """The path of an error, its setting, and the values around it. What pydantic puts between
    names (the tag of a
    union, a validator) is left out.
    """
    names: list[str] = []
    setting: Setting | None = tree
    parent = None
    for position, part in enumerate(loc):
        child = setting.children.get(str(part)) if setting else None
        if isinstance(part, int):
            names.append(f"{names.pop()}[{part}]" if names else f"[{part}]")
        elif child is not None or (isinstance(values, dict) and part in values):
            names.append(part)
            setting, parent = child, values
            values = values.get(part) if isinstance(values, dict) else None
        elif position == len(loc) - 1 and not names:
            names.append(part)
    return names, setting, parent


def _shown(error: Any, names: Sequence[str]) -> str:
    value = error["input"]
    if error["type"] == "missing" or isinstance(value, dict | BaseModel) or not names:
        return ""
    text = MASK if any(map(is_secret_name, names)) and value else repr(mask_secrets(value))
    return f" = {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '...'}"


def _holds(values: Any, names: Sequence[str]) -> bool:
    if isinstance(values, list):
        return any(_holds(entry, names) for entry in values)
    if not names:
        return True
    return isinstance(values, dict) and names[0] in values and _holds(values[names[0]], names[1:])


def _nan_paths(model: BaseModel, path: str) -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _nan_paths(value, f"{path}.{name}")
        elif isinstance(value, float) and math.isnan(value):
            yield f"{path}.{name}"
