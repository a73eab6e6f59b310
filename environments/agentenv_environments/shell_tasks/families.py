"""The families of tasks: each a function that draws one task and says how it is solved, and how it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentenv_environments.shell_tasks.drawing import Draw

SEEN = "{seen}"
"""As a plan's answer: whatever the last command printed."""
DONE = "Done."
"""The answer where nothing was asked."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Everything that is in a sandbox: files with their contents, and folders."""

    files: Mapping[str, str]
    folders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """Commands to run one after the other, and what to answer then."""

    commands: tuple[str, ...]
    answer: str = DONE


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a family says of a task. `after` None: nothing may change."""

    instruction: str
    before: Workspace
    after: Workspace | None
    solution: Plan
    slips: tuple[Plan, ...]
    answer: str | None = None


def _create(draw: Draw) -> Sketch:
    name, line = draw.name(), draw.line()
    first, second = line.split()
    ask = draw.one_of("Create {} with the text: {}", "Make a file {} that says: {}")
    return Sketch(
        instruction=ask.format(name, line),
        before=Workspace({}),
        after=Workspace({name: f"{line}\n"}),
        solution=Plan((f"echo {line} > {name}",)),
        slips=(
            Plan(()),
            Plan((f"echo {first} > {name}",)),
            Plan((f"echo {second} {first} > {name}",)),
        ),
    )


def _append(draw: Draw) -> Sketch:
    name, line, text = draw.name(), draw.line(), draw.text(2)
    ask = draw.one_of("Append the line {1} to {0}", "Add the line {1} at the end of {0}")
    return Sketch(
        instruction=ask.format(name, line),
        before=Workspace({name: text}),
        after=Workspace({name: f"{text}{line}\n"}),
        solution=Plan((f"echo {line} >> {name}",)),
        slips=(Plan((f"echo {line} > {name}",)), Plan((f"echo {line.split()[0]} >> {name}",))),
    )


def _copy(draw: Draw) -> Sketch:
    name, copy, text = draw.name(), draw.name(), draw.text(2)
    ask = draw.one_of("Copy {} to {}", "Make a copy of {} called {}")
    return Sketch(
        instruction=ask.format(name, copy),
        before=Workspace({name: text}),
        after=Workspace({name: text, copy: text}),
        solution=Plan((f"cp {name} {copy}",)),
        slips=(Plan((f"mv {name} {copy}",)), Plan((f"cp {copy} {name}",))),
    )


def _move(draw: Draw) -> Sketch:
    name, target, text = draw.name(), draw.name(), draw.text(2)
    ask = draw.one_of("Rename {} to {}", "Give the file {} the new name {}")
    return Sketch(
        instruction=ask.format(name, target),
        before=Workspace({name: text}),
        after=Workspace({target: text}),
        solution=Plan((f"mv {name} {target}",)),
        slips=(Plan((f"cp {name} {target}",)), Plan((f"mv {target} {name}",))),
    )


def _delete(draw: Draw) -> Sketch:
    name, kept, text = draw.name(), draw.name(), draw.text(1)
    ask = draw.one_of("Delete {} but keep {}", "Remove {} and leave {} alone")
    return Sketch(
        instruction=ask.format(name, kept),
        before=Workspace({name: text, kept: text}),
        after=Workspace({kept: text}),
        solution=Plan((f"rm {name}",)),
        slips=(Plan((f"rm {kept}",)), Plan((f"rm {name} {kept}",))),
    )


def _file_away(draw: Draw) -> Sketch:
    name, folder, text = draw.name(), draw.folder(), draw.text(1)
    ask = draw.one_of("Make a folder {1} and move {0} into it", "Move {0} into a new folder {1}")
    return Sketch(
        instruction=ask.format(name, folder),
        before=Workspace({name: text}),
        after=Workspace({f"{folder}/{name}": text}, frozenset({folder})),
        solution=Plan((f"mkdir {folder} && mv {name} {folder}/",)),
        slips=(Plan((f"mkdir {folder}",)), Plan((f"mv {name} {folder}",))),
    )


def _replace(draw: Draw) -> Sketch:
    name, old, new = draw.name(), draw.word(), draw.word()
    text = f"{old} {draw.word()} {old}\n{draw.line()}\n"
    ask = draw.one_of("Replace every '{1}' by '{2}' in {0}", "In {0} change each '{1}' to '{2}'")
    return Sketch(
        instruction=ask.format(name, old, new),
        before=Workspace({name: text}),
        after=Workspace({name: text.replace(old, new)}),
        solution=Plan((f"sed -i s/{old}/{new}/g {name}",)),
        slips=(Plan((f"sed -i s/{old}/{new}/ {name}",)), Plan((f"sed -i s/{new}/{old}/g {name}",))),
    )


def _extract(draw: Draw) -> Sketch:
    name, target, word = draw.name(), draw.name(), draw.word()
    hits = [f"{word} {draw.word()}\n", f"{draw.word()} {word}\n"]
    text = "".join(draw.shuffled([*hits, draw.text(1), draw.text(1)]))
    kept = "".join(line for line in text.splitlines(keepends=True) if word in line)
    ask = draw.one_of(
        "Put the lines of {0} with {2} into {1}", "Write each line of {0} that has {2} to {1}"
    )
    return Sketch(
        instruction=ask.format(name, target, word),
        before=Workspace({name: text}),
        after=Workspace({name: text, target: kept}),
        solution=Plan((f"grep {word} {name} > {target}",)),
        slips=(Plan((f"grep {word} {name}",)), Plan((f"grep -v {word} {name} > {target}",))),
    )


def _sort(draw: Draw) -> Sketch:
    name, target = draw.name(), draw.name()
    lines = [draw.word() for _ in range(3)]
    text = "".join(f"{line}\n" for line in lines)
    ask = draw.one_of("Sort the lines of {} into {}", "Write the lines of {} in order to {}")
    return Sketch(
        instruction=ask.format(name, target),
        before=Workspace({name: text}),
        after=Workspace({name: text, target: "".join(f"{line}\n" for line in sorted(lines))}),
        solution=Plan((f"sort {name} > {target}",)),
        slips=(Plan((f"sort -r {name} > {target}",)), Plan((f"sort {name}",))),
    )


def _count_lines(draw: Draw) -> Sketch:
    name, target = draw.name(), draw.name()
    text = draw.long_text(draw.number(11, 40)) + f"{draw.line()}\n"
    ask = draw.one_of(
        "Write the number of lines of {} to {}", "Count the lines of {} and put the number into {}"
    )
    return Sketch(
        instruction=ask.format(name, target),
        before=Workspace({name: text}),
        after=Workspace({name: text, target: f"{len(text.splitlines())}\n"}),
        solution=Plan((f"wc -l < {name} > {target}",)),
        slips=(Plan((f"wc -w < {name} > {target}",)), Plan((f"wc -l < {name}",))),
    )


def _count_words(draw: Draw) -> Sketch:
    name = draw.name()
    text = draw.long_text(draw.number(8, 30)) + f"{draw.line()}\n"
    ask = draw.one_of("How many words does {} have?", "Tell me the number of words in {}")
    return Sketch(
        instruction=ask.format(name),
        before=Workspace({name: text}),
        after=None,
        answer=str(len(text.split())),
        solution=Plan((f"wc -w < {name}",), SEEN),
        slips=(Plan((f"wc -l < {name}",), SEEN), Plan((f"wc -w < {name}",))),
    )


def _sum(draw: Draw) -> Sketch:
    name = draw.name()
    numbers = [draw.number(11, 99) for _ in range(draw.number(3, 6))]
    ask = draw.one_of("What is the sum of the numbers in {}?", "Add up the numbers in {}")
    return Sketch(
        instruction=ask.format(name),
        before=Workspace({name: "".join(f"{number}\n" for number in numbers)}),
        after=None,
        answer=str(sum(numbers)),
        solution=Plan((f"echo $(($(paste -sd+ {name})))",), SEEN),
        slips=(Plan((f"paste -sd+ {name}",), SEEN), Plan((f"echo $(($(paste -sd+ {name})))",))),
    )


def _largest(draw: Draw) -> Sketch:
    name, target = draw.name(), draw.name()
    numbers = [draw.number(100, 999), draw.number(1000, 9999), draw.number(11, 99)]
    text = "".join(draw.shuffled([f"{number}\n" for number in numbers]))
    ask = draw.one_of(
        "Put the largest number in {} into {}", "Write the biggest number of {} to {}"
    )
    return Sketch(
        instruction=ask.format(name, target),
        before=Workspace({name: text}),
        after=Workspace({name: text, target: f"{max(numbers)}\n"}),
        solution=Plan((f"sort -n {name} | tail -n 1 > {target}",)),
        slips=(
            Plan((f"sort -n {name} | head -n 1 > {target}",)),
            Plan((f"sort -n {name} | tail -n 1",)),
        ),
    )


def _last_line(draw: Draw) -> Sketch:
    name, text = draw.name(), draw.text(draw.number(3, 6))
    ask = draw.one_of("What is the last line of {}?", "Tell me how {} ends")
    return Sketch(
        instruction=ask.format(name),
        before=Workspace({name: text}),
        after=None,
        answer=text.splitlines()[-1],
        solution=Plan((f"tail -n 1 {name}",), SEEN),
        slips=(Plan((f"head -n 1 {name}",), SEEN), Plan((f"tail -n 1 {name}",))),
    )


def _haystack(draw: Draw) -> tuple[str, str, dict[str, str]]:
    """A word, the one file that has it, and all files."""
    word, found = draw.word(), draw.name()
    files = {found: f"{draw.line()}\n{draw.word()} {word}\n"} | {
        draw.name(): draw.text(2) for _ in range(2)
    }
    return word, found, files


def _search(draw: Draw) -> Sketch:
    word, found, files = _haystack(draw)
    ask = draw.one_of("Which file mentions {}?", "Find the file that has the word {} in it")
    return Sketch(
        instruction=ask.format(word),
        before=Workspace(files),
        after=None,
        answer=found,
        solution=Plan((f"grep -l {word} *",), SEEN),
        slips=(Plan((f"grep {word} *",), SEEN), Plan((f"grep -l {word} *",))),
    )


def _copy_match(draw: Draw) -> Sketch:
    word, found, files = _haystack(draw)
    copy = draw.name()
    ask = draw.one_of(
        "Copy the file that mentions {} to {}", "Find the file with {} in it and copy it to {}"
    )
    look = f"grep -l {word} *"
    return Sketch(
        instruction=ask.format(word, copy),
        before=Workspace(files),
        after=Workspace({**files, copy: files[found]}),
        solution=Plan((look, f"cp ./{found} {copy}")),
        slips=(Plan((look,)), Plan((look, f"mv ./{found} {copy}"))),
    )


def _delete_match(draw: Draw) -> Sketch:
    word, found, files = _haystack(draw)
    ask = draw.one_of(
        "Delete the file that mentions {}", "Find the file with {} in it and remove it"
    )
    look = f"grep -l {word} *"
    return Sketch(
        instruction=ask.format(word),
        before=Workspace(files),
        after=Workspace({name: text for name, text in files.items() if name != found}),
        solution=Plan((look, f"rm ./{found}")),
        slips=(Plan((look,)), Plan((look, f"rm ./{word}"))),
    )


def _only_file(draw: Draw) -> Sketch:
    folder, name, target, text = draw.folder(), draw.name(), draw.name(), draw.text(1)
    ask = draw.one_of(
        "Move the only file in the folder {} to {}",
        "Take the file out of the folder {} and call it {}",
    )
    inside = f"{folder}/{name}"
    return Sketch(
        instruction=ask.format(folder, target),
        before=Workspace({inside: text}, frozenset({folder})),
        after=Workspace({target: text}, frozenset({folder})),
        solution=Plan((f"ls {folder}", f"mv {inside} {target}")),
        slips=(
            Plan((f"ls {folder}", f"cp {inside} {target}")),
            Plan((f"ls {folder}", f"mv {name} {target}")),
        ),
    )


def _append_and_count(draw: Draw) -> Sketch:
    name, line = draw.name(), draw.line()
    text = draw.long_text(draw.number(11, 40))
    ask = draw.one_of(
        "Append {1} to {0} and tell me its new number of lines",
        "Add the line {1} to {0}, then count its lines",
    )
    return Sketch(
        instruction=ask.format(name, line),
        before=Workspace({name: text}),
        after=Workspace({name: f"{text}{line}\n"}),
        answer=str(len(text.splitlines()) + 1),
        solution=Plan((f"echo {line} >> {name}", f"wc -l < {name}"), SEEN),
        slips=(
            Plan((f"echo {line} >> {name}",)),
            Plan((f"echo {line} > {name}", f"wc -l < {name}"), SEEN),
        ),
    )


FAMILIES: Mapping[str, Callable[[Draw], Sketch]] = {
    "create": _create,
    "append": _append,
    "copy": _copy,
    "move": _move,
    "delete": _delete,
    "file_away": _file_away,
    "replace": _replace,
    "extract": _extract,
    "sort": _sort,
    "count_lines": _count_lines,
    "count_words": _count_words,
    "sum": _sum,
    "largest": _largest,
    "last_line": _last_line,
    "search": _search,
    "copy_match": _copy_match,
    "delete_match": _delete_match,
    "only_file": _only_file,
    "append_and_count": _append_and_count,
}
