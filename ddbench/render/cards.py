"""What there is, as text: lists of components, and each with its help and options."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ddbench.contract.component import Component


def listing(entries: Mapping[str, Sequence[Mapping[str, str]]], broken: Sequence[str]) -> None:
    """Print what there is, kind by kind."""
    console = Console(highlight=False)
    for plural, rows in entries.items():
        if not rows:
            console.print(f"[bold]{plural}[/]: none\n")
            continue
        table = Table(
            title=plural, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False
        )
        table.add_column("name", no_wrap=True, style="cyan")
        table.add_column("summary")
        table.add_column("source", style="dim", no_wrap=True)
        for row in rows:
            table.add_row(Text(row["name"]), Text(row["summary"]), Text(row["source"]))
        console.print(table)
        console.print()
    for line in broken:
        console.print(Text(f"Warning: {line}", style="yellow"))


def card(component: "Component") -> None:
    """Print one component's help, facts and options."""
    console = Console(highlight=False)
    console.print(Text(f"{component.name}  ({component.kind}, {component.distribution})", style="bold"))
    console.print()
    console.print(Markdown(component.help))
    for key, value in component.shown_facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        console.print(Text(f"  {key}: {shown}"))
    rows = option_rows(component)
    if not rows:
        console.print("\nNo options.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("option", "type", "default", "meaning"):
        table.add_column(heading, no_wrap=heading == "option")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)


def option_rows(component: "Component") -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each option of a component."""
    fields = component.options.model_json_schema().get("properties", {})
    return [
        (name, _type(field), str(field.get("default")), field.get("description", "")) for name, field in fields.items()
    ]


def _type(field: Mapping[str, Any]) -> str:
    """A JSON schema type with its bounds, for people."""
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " | ".join(_type(option) for option in field["anyOf"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {json.dumps(field[key])}" for key, sign in bounds.items() if key in field]
    name = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "null": "none"}
    kind = str(field.get("type", "any"))
    return " ".join([name.get(kind, kind), *limits])
