"""What is said of plugins and of the installation, as text."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog

MARKS = {
    "ok": "green", "passed": "green", "missing": "dim", "skipped": "dim", "fault": "red", "failed": "red",
}  # fmt: skip
"""How one thing that was looked at ended, and its colour."""


def status_line(status: str, about: str, text: str, remedy: str) -> None:
    """Print how one check, or one finding, ended, and what to do about it."""
    console = Console(highlight=False)
    line = Text(f"{status.upper() if MARKS[status] == 'red' else status:<8}", style=MARKS[status])
    console.print(line.append(f"{about}: {text}" if text else about, style="default"))
    if remedy:
        console.print(Text(f"        {remedy}", style="yellow"))


def plugin_table(catalog: "Catalog") -> None:
    """Print the plugins that loaded, those set aside, slow or left out."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("plugin", "from", "offers"):
        table.add_column(heading)
    for plugin in catalog.plugins:
        table.add_row(Text(plugin.name), Text(plugin.distribution), Text(", ".join(plugin.offers) or "hooks only"))
    console.print(table)
    if catalog.disabled:
        console.print(Text(f"\nLeft out by DDBENCH_DISABLE: {', '.join(catalog.disabled)}"))
    for warning in catalog.warnings():
        console.print(Text(f"\nWarning: {warning}", style="yellow"))
