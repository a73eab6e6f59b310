"""The settings a pydantic model has, as a tree: what may be set, how its text is read, and what
help says of it.

One tree serves the YAML file, the environment variables and the flags, so all three know the same
names.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_MAX_DEPTH = 5
_LIST_TYPES = (list, tuple, set, frozenset, Sequence, MutableSequence, AbstractSet)


class Kind(StrEnum):
    """How a setting's text is read."""

    VALUE = "value"
    FLAG = "flag"
    LIST = "list"
    OBJECT = "object"


@dataclass(slots=True)
class Setting:
    """One setting, or a group of them when it has `children`."""

    name: str
    kind: Kind = Kind.OBJECT
    optional: bool = False
    accepts: str = ""
    default: Any = None
    doc: str = ""
    open_ended: bool = False
    """Any name is good below it."""
    tags: frozenset[str] = frozenset()
    """Names whose value tells which of several models is meant."""
    children: dict[str, Setting] = field(default_factory=dict)

    def leaves(self, prefix: str) -> Iterator[tuple[str, Setting]]:
        """Every setting that holds a value, with its full name."""
        for name, child in self.children.items():
            path = f"{prefix}.{name}"
            if child.children:
                yield from child.leaves(path)
            else:
                yield path, child


def settings_of(model: type[BaseModel], current: Any = None) -> Setting:
    """The tree of a model's settings. `current` is an instance whose values are the defaults help
    shows.
    """
    return _group("", [model], current, 0)


def input_name(name: str, info: FieldInfo) -> str:
    """The name a field is given by."""
    alias = info.validation_alias
    return alias if isinstance(alias, str) else name


def is_tag(info: FieldInfo) -> bool:
    """Whether a field can have one value only, and so tells what its model is."""
    return get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


def _group(name: str, models: Sequence[type[BaseModel]], current: Any, depth: int) -> Setting:
    group = Setting(name, tags=_tags(models))
    for model in models:
        group.open_ended |= model.model_config.get("extra") == "allow"
        for field_name, info in model.model_fields.items():
            held = getattr(current, field_name, None) if isinstance(current, model) else None
            child = _setting(input_name(field_name, info), info, held, depth)
            known = group.children.setdefault(child.name, child)
            if known is not child:
                _join(known, child)
    return group


def _tags(models: Sequence[type[BaseModel]]) -> frozenset[str]:
    if len(models) < 2:
        return frozenset()
    names = [
        {name for name, info in model.model_fields.items() if is_tag(info)} for model in models
    ]
    return frozenset.intersection(*map(frozenset, names))


def _join(known: Setting, other: Setting) -> None:
    """Two models of a union have a setting of the same name: it accepts what either does."""
    if known.accepts != other.accepts:
        known.accepts = f"{known.accepts} | {other.accepts}"
    if known.kind is not other.kind:
        known.kind = Kind.VALUE
    for name, child in other.children.items():
        known.children.setdefault(name, child)


def _setting(name: str, info: FieldInfo, current: Any, depth: int) -> Setting:
    members = _members(info.annotation)
    optional = type(None) in members
    members = [member for member in members if member is not type(None)]
    default = current if current is not None else info.get_default(call_default_factory=False)
    models = [
        member for member in members if isinstance(member, type) and issubclass(member, BaseModel)
    ]
    if models and depth < _MAX_DEPTH:
        group = _group(name, models, default, depth + 1)
        group.optional, group.doc = optional, info.description or ""
        return group
    return Setting(
        name,
        kind=_kind(members),
        optional=optional,
        accepts=_accepts(members, info.metadata, optional),
        default=default,
        doc=" ".join((info.description or "").split()),
    )


def _members(annotation: Any) -> list[Any]:
    """What a type may be, unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _kind(members: Sequence[Any]) -> Kind:
    origins = [get_origin(member) or member for member in members]
    if any(origin in _LIST_TYPES for origin in origins):
        return Kind.LIST
    if any(_is_object(origin) for origin in origins):
        return Kind.OBJECT
    return Kind.FLAG if origins == [bool] else Kind.VALUE


def _is_object(origin: Any) -> bool:
    return isinstance(origin, type) and (
        issubclass(origin, BaseModel) or issubclass(origin, Mapping)
    )


def _accepts(members: Sequence[Any], metadata: Sequence[Any], optional: bool) -> str:
    names = [_type_name(member) for member in members] + ["null"] * optional
    text = " | ".join(dict.fromkeys(names))
    return " ".join([text, *filter(None, map(_limit, metadata))])


def _type_name(member: Any) -> str:
    if get_origin(member) is Literal:
        return " | ".join(str(value) for value in get_args(member))
    if isinstance(member, type) and issubclass(member, Enum):
        return " | ".join(str(value.value) for value in member)
    known = {
        int: "integer",
        float: "number",
        bool: "true | false",
        str: "text",
        SecretStr: "secret",
    }
    kind = _kind([member])
    if member in known:
        return known[member]
    return {Kind.LIST: "list", Kind.OBJECT: "JSON object"}.get(
        kind, getattr(member, "__name__", "value")
    )


def _limit(constraint: Any) -> str | None:
    for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        limit = getattr(constraint, attribute, None)
        if limit is not None:
            return f"{sign} {limit:g}" if isinstance(limit, int | float) else f"{sign} {limit}"
    return None
