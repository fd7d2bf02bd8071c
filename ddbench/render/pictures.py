"""Pictures of a run: the distilled images with class names and rates, and the curve of the loss."""

import io
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import decode
from ddbench.discovery.modalities import present
from ddbench.machine.files import atomic_write
from ddbench.records.result import LOG_PLACE, RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor

    from ddbench.contract.spec import Sweep
    from ddbench.pipeline.sweep import Point

MOST_COLUMNS, MOST_ROWS = 20, 20
SHEET_ROWS, SHEET_WIDTH = 10, 320
DPI = 110
INK, ACCENT, PALE = "#222222", "#3b6fb6", "#b8c4d6"
COLOURS = (ACCENT, "#c46a2d", "#3f8f5f", "#8a5fa8", "#b03a48")


def draw_run(folder: RunFolder, catalog: Catalog | None = None) -> None:
    """Present the set and draw the curve, as far as the run folder has them.

    `catalog` offers decoders of payloads, and the modality that presents the set: as pictures, lines, other files.
    """
    if folder.artifact.exists():
        catalog = catalog or Catalog()
        distilled = decode(DistilledSet.load(folder.artifact), catalog)
        shown = present(distilled, catalog)
        if shown.pixels is not None:
            draw_images(distilled, folder.picture, shown.pixels)
        if shown.lines:
            atomic_write(folder.lines, "".join(f"{line}\n" for line in shown.lines))
        for name, content in shown.files.items():
            atomic_write(folder.path / name, content)
    records = [json.loads(line) for line in folder.log.read_text().splitlines()] if folder.log.exists() else []
    if records:
        draw_curve(records, folder.curve)


def draw_images(distilled: DistilledSet, path: Path, pixels: "Tensor | None" = None) -> None:
    """Draw the images as pixels in a grid: a column per class, a row per step and image, rates at the left.

    Values outside [0, 1] are clipped. Sets of more than 20 classes or rows show the first 20. `pixels [total, c, h, w]`
    are the pictures of a set that does not hold images.
    """
    from matplotlib.figure import Figure

    classes = json.loads(distilled.metadata.get("classes", "[]"))
    grid = _grid(distilled, len(classes))
    columns = min(MOST_COLUMNS, max(len(row) for _, row in grid))
    rows = grid[:MOST_ROWS]
    shown = (distilled.pixels() if pixels is None else pixels).permute(0, 2, 3, 1).numpy()
    figure = Figure(figsize=(1.7 + 0.85 * columns, 1.1 + 0.9 * len(rows)), layout="constrained")
    figure.suptitle(_title(distilled), fontsize=10, color=INK, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (label, indices), line in zip(rows, axes, strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=7, color=INK)
        for axis, index in zip(line, indices, strict=False):
            image = shown[index]
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(_class_name(distilled, index, classes), fontsize=7, color=INK, pad=2, parse_math=False)
    _save(figure, path)


@dataclass(frozen=True)
class Sheet:
    """The images of a set on one picture, tiles of one size that are a pixel apart before they are enlarged.

    Attributes:
        png: the picture.
        labels: class of each tile, by row; the most probable one of a distribution.
        size: height and width of a tile in its own pixels.
    """

    png: bytes
    labels: list[list[int]]
    size: tuple[int, int]


def contact_sheet(distilled: DistilledSet, pixels: "Tensor | None" = None) -> Sheet:
    """Return the images' own pixels on one PNG, enlarged by a whole number; arguments and places as in `draw_images`.

    At most ten rows. For pages that show many sets: it takes ten milliseconds where a figure takes seconds.
    """
    import torch
    from PIL import Image

    classes = json.loads(distilled.metadata.get("classes", "[]"))
    rows = [indices[:MOST_COLUMNS] for _, indices in _grid(distilled, len(classes))][:SHEET_ROWS]
    pixels, labels = distilled.pixels() if pixels is None else pixels, _flat_labels(distilled)
    columns = max(len(row) for row in rows)
    channels, height, width = pixels.shape[1:]
    sheet = torch.ones(channels, len(rows) * (height + 1) - 1, columns * (width + 1) - 1)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            top, left = y * (height + 1), x * (width + 1)
            sheet[:, top : top + height, left : left + width] = pixels[index]
    array = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    larger = max(1, SHEET_WIDTH // image.width)
    buffer = io.BytesIO()
    image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST).save(
        buffer, "PNG", optimize=True
    )
    return Sheet(buffer.getvalue(), [[labels[index] for index in row] for row in rows], (height, width))


def draw_curve(records: list[dict[str, Any]], path: Path) -> None:
    """Draw every logged figure over the outer steps, and its running mean."""
    from matplotlib.figure import Figure

    names = [name for name in records[0] if name not in LOG_PLACE and not name.startswith("gradient")]
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots(1, max(1, len(names)), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=False):
        points = [(r["step"], r[name]) for r in records if name in r and math.isfinite(r[name])]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        axis.plot(steps, values, color=PALE, linewidth=0.8)
        axis.plot(steps, _smooth(values), color=ACCENT, linewidth=1.6)
        axis.set_xlabel("outer step")
        axis.set_title(name.replace("_", " "), fontsize=10, color=INK)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_sweep(sweep: "Sweep", points: "Sequence[Point]", name: str, path: Path) -> None:
    """Draw a figure over the first axis of a sweep, with 95 % intervals if any; a line for each second value.

    The axis is logarithmic where its values are spread evenly in ratio over two decades.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    lines = list(dict.fromkeys(point.values[1:] for point in points))
    result = points[0].result
    percent = 100 if result.metric_of(name).unit == "share" else 1
    every = [percent * point.figure(name)[0] for point in points]
    shades = [COLOURS[i % len(COLOURS)] for i in range(len(lines))]
    for values, colour in zip(lines, shades, strict=True):
        chosen = [point for point in points if point.values[1:] == values]
        places = [_place(sweep, point.values[0]) for point in chosen]
        figures = [[math.nan if v is None else percent * v for v in point.figure(name)] for point in chosen]
        label = f"{sweep.axes[1].name} {values[0]}" if values else ""
        axis.plot(places, [f[0] for f in figures], "o-", color=colour, linewidth=1.6, markersize=4, label=label)
        low, high = [f[1] for f in figures], [f[2] for f in figures]
        axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    if min(every) > 0 and max(every) > 100 * min(every):
        axis.set_yscale("log")
    ticks = sweep.axes[0].values
    if _spread_evenly_in_ratio(ticks):
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks([_place(sweep, value) for value in ticks], [str(value) for value in ticks])
    axis.set_xlabel(sweep.axes[0].name)
    axis.set_ylabel(name.replace("_", " ") + (" (%)" if percent == 100 else ""))
    data = result.dataset.name if result.dataset else ""
    split = "" if result.settings.split == "test" else ", on the validation slice"
    axis.set_title(f"{result.settings.method.name} on {data}{split}", fontsize=10, color=INK, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    if lines != [()]:
        axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _place(sweep: "Sweep", value: Any) -> float:
    """Return the place of a swept value on the axis: a number's own, and that in the order for other values."""
    values = sweep.axes[0].values
    return float(value) if _are_numbers(values) else float(values.index(value))


def _are_numbers(values: "Sequence[Any]") -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spread_evenly_in_ratio(values: "Sequence[Any]") -> bool:
    """Return whether values are positive, span two decades, and follow one another in about the same ratio."""
    if not _are_numbers(values) or min(values) <= 0 or max(values) < 100 * min(values):
        return False
    logs = sorted(math.log(value) for value in set(values))
    gaps = [above - below for below, above in itertools.pairwise(logs)]
    return max(gaps) <= 3 * min(gaps)


def _grid(distilled: DistilledSet, classes: int) -> list[tuple[str, list[int]]]:
    """Return rows of image indices into `flat()`, each with a text for its left edge."""
    steps, n = distilled.inputs.shape[:2]
    rows = []
    for step in range(steps):
        indices = list(range(step * n, (step + 1) * n))
        labels = _flat_labels(distilled)[step * n : (step + 1) * n]
        order = sorted(indices, key=lambda i: (_rank(indices, labels, i), labels[i - step * n]))
        text = "" if distilled.lrs is None else f"step {step + 1}\n" + "\n".join(_rates(distilled, step))
        width = max(1, min(classes, MOST_COLUMNS)) if classes else n
        for start in range(0, n, width):
            rows.append((text if start == 0 else "", order[start : start + width]))
    return rows


def _rank(indices: list[int], labels: list[int], index: int) -> int:
    """Return the number of images of the same class before this one in its step."""
    position = index - indices[0]
    return labels[:position].count(labels[position])


def _rates(distilled: DistilledSet, step: int) -> list[str]:
    assert distilled.lrs is not None
    rates = distilled.lrs[:, step].tolist() if distilled.lrs.dim() else [float(distilled.lrs)]
    shown = [f"lr {rate:.3g}" for rate in rates[:3]]
    return [*shown, f"... ({len(rates)})"] if len(rates) > 3 else shown


def _flat_labels(distilled: DistilledSet) -> list[int]:
    labels = distilled.flat()[1]
    return [int(label) for label in (labels.argmax(-1) if distilled.soft else labels)]


def _class_name(distilled: DistilledSet, index: int, classes: list[str]) -> str:
    label = _flat_labels(distilled)[index]
    name = classes[label] if label < len(classes) else str(label)
    if distilled.soft:
        return f"{name} {float(distilled.targets().flatten(0, 1)[index].max()):.2f}"
    return name


def _title(distilled: DistilledSet) -> str:
    data = distilled.metadata
    noun = "images" if data.get("modality", "image") == "image" else "examples"
    return f"{data.get('method', '')} on {data.get('dataset', '')}: {distilled.count} {noun}"


def _smooth(values: list[float]) -> list[float]:
    """Return a centred running mean over about a twentieth of the values."""
    half = len(values) // 40
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    atomic_write(path, buffer.getvalue())
