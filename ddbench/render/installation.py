"""Plugins, checks and findings about the installation, as text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ddbench.discovery.index import Index

MARKS = {
    "ok": "green", "passed": "green", "missing": "dim", "skipped": "dim", "fault": "red", "failed": "red",
}  # fmt: skip
"""The outcomes of a check or a finding, and their colours."""


def status_line(status: str, about: str, text: str, remedy: str) -> None:
    """Print the outcome of one check or finding, and its remedy."""
    console = Console(highlight=False)
    line = Text(f"{status.upper() if MARKS[status] == 'red' else status:<8}", style=MARKS[status])
    console.print(line.append(f"{about}: {text}" if text else about, style="default"))
    if remedy:
        console.print(Text(f"        {remedy}", style="yellow"))


def plugin_table(index: "Index") -> None:
    """Print the plugins that loaded, those that are disabled, and a line for each problem."""
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=None, pad_edge=False)
        for heading in ("plugin", "from", "offers", "load time"):
            table.add_column(heading)
        for row in _plugin_rows(index):
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        for row in _plugin_rows(index):
            console.print(Text("  ".join(row)), soft_wrap=True)
    if index.disabled:
        console.print(Text(f"\nDisabled by DDBENCH_DISABLE: {', '.join(index.disabled)}"), soft_wrap=True)
    for warning in index.warnings:
        console.print(Text(f"\nWarning: {warning}", style="yellow"), soft_wrap=True)


def _plugin_rows(index: "Index") -> Iterator[tuple[str, str, str, str]]:
    for plugin in index.plugins:
        offers = ", ".join(plugin.offers) or f"hooks {', '.join(plugin.hooks)}"
        yield plugin.name, plugin.distribution, offers, f"{plugin.seconds:.2f} s"
