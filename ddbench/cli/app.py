"""The `ddbench` application: its commands, and those that plugins add."""

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddbench.cli import authors, boards, evaluate, export, installation, listing, pretrain, run, suite, work
from ddbench.cli.output import explained_failures


class _WithPluginCommands(TyperGroup):
    """Commands of ddbench, and those of plugins, which are loaded for an unknown command only."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        builtin = super().get_command(ctx, cmd_name)
        if builtin is not None:
            return builtin
        with explained_failures():
            from ddbench.discovery.calls import brief, call
            from ddbench.discovery.catalog import Catalog

            extra = typer.Typer()
            extra.command("_", hidden=True)(lambda: None)
            extra.command("__", hidden=True)(lambda: None)
            for plugin, hook in Catalog().hooks("ddbench_commands"):
                try:
                    call(hook, app=extra)
                except Exception as error:
                    sys.stderr.write(f"Warning: {plugin.who} failed to add its commands: {brief(error)}\n")
            group = typer.main.get_group(extra)
            return group.get_command(ctx, cmd_name)
        return None


app = typer.Typer(
    cls=_WithPluginCommands,
    name="ddbench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ddbench {version('ddbench')}")
        raise typer.Exit


@app.callback()
def ddbench(
    ctx: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks of failures.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Benchmark dataset distillation: run a method, get a number that you can trust.

    First steps: `ddbench run --method unrolled_gd` distils the digits that ship with scikit-learn;
    `ddbench list` lists methods, datasets and more; `ddbench show NAME` explains one of them;
    `ddbench leaderboard` compares the results.

    Exit codes: 0 ok or skipped, 1 a run failed, 2 usage, 3 a prerequisite is missing, 4 a plugin failed,
    130 interrupted.
    """
    ctx.obj = verbose
    # A notice to the user, not to the author of a line of code.
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"


for module in (run, suite, work, evaluate, export, pretrain, listing, boards, authors, installation):
    module.register(app)


def main() -> None:
    """Run the console script."""
    from ddbench.machine import processes
    from ddbench.machine.environment import keep_freed_memory

    keep_freed_memory()
    if processes.rank():
        # Process 0 speaks for all of them: a failure of one is raised in each.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, it stays open until the end
    app()
