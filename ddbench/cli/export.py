"""The command that writes a distilled set in the layouts of other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, warn_of_plugins


class LayoutName(StrEnum):
    """The layouts of `ddbench.formats.writers`, which the help names without loading them."""

    DC = "dc"
    MTT = "mtt"
    FOLDER = "folder"
    NPZ = "npz"
    WEBDATASET = "webdataset"


def export(
    ctx: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            help="A run folder, or a distilled.safetensors file.", metavar="RUN", autocompletion=completion.runs
        ),
    ],
    to: Annotated[LayoutName, typer.Option("--to", help="The layout.")],
    out: Annotated[
        Path | None, typer.Option(help="File or folder to write. [export-LAYOUT beside the set]", metavar="PATH")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export wrote there.")] = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Write a distilled set in a layout that other evaluation code reads, and report what the layout cannot hold.

    - `dc`: a `.pt` file for the code of DC, DSA and DM, normalised by their numbers; hard labels only.

    - `mtt`: a folder with `images_best.pt`, `labels_best.pt` and, of a set with one rate, `lr_best.pt`, normalised by
    the numbers of MTT; soft labels are logits, as DATM reads them.

    - `folder`: `CLASS/INDEX.png`; hard labels only.

    - `npz`: the arrays `images` (pixels, NHWC) and `labels`, and `lrs` and `weights` where the set has them.

    - `webdataset`: a `.tar` of `INDEX.png` with `INDEX.cls`, or `INDEX.json` for a soft label.

    Example: `ddbench export runs/unrolled_gd-mnist-ipc10-3f9a1c --to dc`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.export import export as write

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        written = write(run, to.value, catalog, out, force=force)
        if as_json:
            print_json(
                {
                    "status": "ok",
                    "path": str(written.path),
                    "layout": written.layout,
                    "files": dict(written.files),
                    "notes": list(written.notes),
                    "lost": list(written.lost),
                }
            )
            return
        typer.echo(f"Wrote {written.path}")
        for note in written.notes:
            typer.echo(note)
        if written.lost:
            typer.echo(f"Not kept: {'; '.join(written.lost)}.")


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(export)
