"""What `--help` says of settings: name, what is accepted, meaning, default."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined
from rich.table import Table
from rich.text import Text

from agentenv.cli.fields import Kind
from agentenv.run.masking import is_secret_name, mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agentenv.cli.fields import Setting

_INTRODUCTION = """
Settings come, each before the next, from flags (--env.group_size 8), environment variables
(AGENTENV_ENV__GROUP_SIZE=8), the YAML file (env: {group_size: 8}) and the environment's config_init.
A list is several words, a,b or JSON; a switch needs no value; `null` is none; a value that starts with --
is written --name=value. --openai.* holds for every server; in YAML, openai may be a list of servers.
""".strip()


def settings_help(trees: Mapping[str, Setting]) -> Iterator[Table | Text]:
    """The sections of help, one after the other."""
    yield Text(_INTRODUCTION.replace("\n", " "), style="dim")
    for section, tree in trees.items():
        yield Text(f"\n--{section}.*", style="bold")
        yield _section(section, tree)


def _section(section: str, tree: Setting) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan", max_width=44, overflow="fold")
    table.add_column(overflow="fold")
    for path, setting in tree.leaves(section):
        table.add_row(Text(f"--{path}"), _line(path, setting))
    return table


def _line(path: str, setting: Setting) -> Text:
    text = Text(setting.doc)
    facts = f"{setting.accepts}, default {_default(path, setting)}"
    return text.append(f"{' ' if setting.doc else ''}[{facts}]", style="dim")


def _default(path: str, setting: Setting) -> str:
    value: Any = setting.default
    if value is PydanticUndefined:
        return "none: it must be given"
    if is_secret_name(path.rpartition(".")[2]):
        value = mask_secrets({path: value})[path]
    if value is None or value == "":
        return "none"
    if setting.kind is Kind.FLAG:
        return str(value).lower()
    value = value.value if isinstance(value, Enum) else mask_secrets(value)
    return " ".join(map(str, value)) or "empty" if isinstance(value, list) else str(value)
