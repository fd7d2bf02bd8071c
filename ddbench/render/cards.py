"""Lists of what there is, and one thing with its help and options, as text."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ddbench.discovery.index import Entry

GAP = 2
"""Columns between two cells."""


def listing(lists: Mapping[str, Sequence["Entry"]], warnings: Sequence[str]) -> None:
    """Print one line per entry, list by list, and the warnings."""
    console = Console(highlight=False)
    for title, entries in lists.items():
        console.print(f"[bold]{title}[/]" if entries else f"[bold]{title}[/]: none")
        width = max((cell_len(entry.name) for entry in entries), default=0)
        for entry in entries:
            print_line(console, entry, width)
        console.print()
    for warning in warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)


def print_line(console: Console, entry: "Entry", width: int) -> None:
    """Print name, summary and source of an entry in one line; `width` is that of the longest name.

    On a terminal a long summary is cropped, and the source stands at the right if there is room. A file or a pipe gets
    the whole line.
    """
    summary = " ".join(entry.summary.split())
    line = Text.assemble((entry.name, "cyan"), " " * (width - cell_len(entry.name) + GAP), summary)
    room = console.width - cell_len(line.plain) - cell_len(entry.source)
    if not console.is_terminal:
        line.append(f"{' ' * GAP}({entry.source})")
    elif room >= GAP:
        line.append(" " * room).append(entry.source, style="dim")
    else:
        line.truncate(console.width, overflow="ellipsis")
    console.print(line, soft_wrap=True)


def card(entry: "Entry", recipe: Mapping[str, Any] | None = None) -> None:
    """Print help, facts and options of a component; with a `recipe`, its values in a column of their own."""
    console = Console(highlight=False)
    console.print(Text(f"{entry.name}  ({entry.kind}, {entry.source})", style="bold"))
    console.print()
    console.print(Markdown(entry.help))
    for key, value in entry.facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        console.print(Text(f"  {key}: {shown}"))
    rows = option_rows(entry.options)
    if not rows:
        console.print("\nNo options.")
        return
    table = Table(box=None, pad_edge=False)
    recipe_heading = () if recipe is None else ("recipe",)
    for heading in ("option", "type", "default", *recipe_heading, "meaning"):
        table.add_column(heading, no_wrap=heading == "option")
    for name, kind, default, meaning in rows:
        published = () if recipe is None else (str(recipe.get(name, "")),)
        table.add_row(*map(Text, (name, kind, default, *published, meaning)))
    console.print()
    console.print(table)


def brief_card(entry: "Entry") -> None:
    """Print name, source and summary of a protocol, an experiment or a pool, and the settings of an experiment."""
    console = Console(highlight=False)
    console.print(Text(f"{entry.name}  ({entry.source})\n\n{entry.summary}"), soft_wrap=True)
    if entry.settings:
        console.print(Text("\n" + json.dumps(entry.settings, indent=2)), soft_wrap=True)


def option_rows(schema: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of each option, from the JSON schema of the options."""
    return [
        (name, _type(field), str(field.get("default")), field.get("description", "")) for name, field in schema.items()
    ]


def _type(field: Mapping[str, Any]) -> str:
    """Return a JSON schema type with its bounds as people write it."""
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " | ".join(_type(option) for option in field["anyOf"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {json.dumps(field[key])}" for key, sign in bounds.items() if key in field]
    name = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "null": "none"}
    kind = str(field.get("type", "any"))
    return " ".join([name.get(kind, kind), *limits])
