"""The page on the architecture, read from the source: layers, imports between sub-packages, and the walk of a spec.

Layers come from the contract of import-linter in `pyproject.toml`.
Imports come from grimp, the library below import-linter.
The walk comes from the annotations of functions.
So the page cannot differ from the code: a step of the walk without a function fails the build.
"""

import ast
import html
import itertools
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
WALK = ("RunSpec", "Plan", "Prepared", "Task", "DistilledSet", "Evaluation", "Scores", "RunResult", "Line")
"""Types that a run passes through, from the request to a line of a leaderboard."""
NOT_WALKED = {"ddbench.cli", "ddbench.render", "ddbench.testing", "ddbench.scaffold", "ddbench.builtin"}
"""Sub-packages that stand above the walk or beside it."""
PLUGINS = "plugins"
"""The band of the picture for every package that plugs in, `ddbench.builtin` included."""
LISTED = 5
"""Functions of plugins that a step lists by name at most."""
LEFT, BAND, STEP = 170, 44, 112
"""Lengths in the picture, in pixels: where the first column begins, height of a band, width of a column."""


@dataclass(frozen=True)
class Function:
    """A function of the source, with the names of the types in its signature and of the functions it calls."""

    module: str
    name: str
    takes: frozenset[str]
    returns: frozenset[str]
    calls: frozenset[str]

    @property
    def private(self) -> bool:
        """True for an internal function."""
        return any(part.startswith("_") for part in self.name.split("."))


def settings() -> dict[str, list[str]]:
    """Return the settings of import-linter: the packages, and the layers from top to bottom."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [
        contract["layers"]
        for contract in tool["contracts"]
        if contract["type"] == "layers" and "ddbench.cli" in str(contract["layers"])
    ]
    return {"packages": tool["root_packages"], "layers": [str(layer) for layer in layers]}


def layers() -> list[list[str]]:
    """Return the sub-packages of each layer, from top to bottom."""
    return [layer.replace(":", "|").replace(" ", "").split("|") for layer in settings()["layers"]]


@cache
def graph() -> grimp.ImportGraph:
    """Return the import graph of ddbench and of the plugins that come with it, without imports for types alone."""
    return grimp.build_graph(*settings()["packages"], exclude_type_checking_imports=True, cache_dir=None)


def band(module: str) -> str:
    """Return the sub-package that a module belongs to; everything that plugs in is one."""
    parts = module.split(".")
    if parts[0] != "ddbench" or parts[:2] == ["ddbench", "builtin"]:
        return PLUGINS
    return ".".join(parts[:2])


def bands() -> list[str]:
    """Return every sub-package in the order of the layers, below the plugins and `ddbench` itself."""
    return [PLUGINS, "ddbench", *(name for layer in layers() for name in layer)]


def imports() -> Counter[tuple[str, str]]:
    """Count the imports of a module by a module, for each pair of sub-packages."""
    counts: Counter[tuple[str, str]] = Counter()
    for module in graph().modules:
        for imported in graph().find_modules_directly_imported_by(module):
            pair = band(module), band(imported)
            if pair[0] != pair[1]:
                counts[pair] += 1
    return counts


@cache
def source() -> tuple[dict[str, str], dict[str, frozenset[str]], tuple[Function, ...]]:
    """Return the module and the base classes of each class by its name, and every function, of the whole source."""
    homes: dict[str, str] = {}
    bases: dict[str, frozenset[str]] = {}
    functions: list[Function] = []
    for module in sorted(graph().modules):
        for node in ast.parse(_file(module).read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, module)
                bases.setdefault(node.name, _names(node.bases))
                members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
                functions += [_function(module, member, node.name) for member in members]
            elif isinstance(node, ast.FunctionDef):
                functions.append(_function(module, node))
    return homes, bases, tuple(functions)


def _file(module: str) -> Path:
    """Return the file of a module, without importing it."""
    package, *names = module.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*names)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _function(module: str, node: ast.FunctionDef, owner: str = "") -> Function:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    takes = _names(argument.annotation for argument in arguments)
    returns = _names([node.returns])
    decorators = _names(node.decorator_list)
    if owner and not decorators & {"classmethod", "staticmethod"}:
        takes |= {owner}
    if owner and "Self" in returns:
        returns |= {owner}
    called = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
    calls = {part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in called}
    return Function(module, f"{owner}.{node.name}".lstrip("."), takes, returns, frozenset(calls))


def _names(annotations: Iterable[ast.expr | None]) -> frozenset[str]:
    """Return every name in annotations, those in quotes too."""
    names: set[str] = set()
    for annotation in annotations:
        for part in ast.walk(annotation) if annotation is not None else ():
            if isinstance(part, ast.Name):
                names.add(part.id)
            elif isinstance(part, ast.Attribute):
                names.add(part.attr)
            elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
                names.add(part.value)
    return frozenset(names)


def walk() -> list[tuple[str, str, list[Function]]]:
    """Return each step: a type, the next one, and the functions that lead from one to the other.

    Such a function returns the second type.
    It takes the first one or a base class of it, or it calls a function that returns the first one.
    Internal functions are left out where there are public ones.
    Raises `LookupError` for a step without a function: then `WALK` is out of date.
    """
    homes, bases, functions = source()
    steps = []
    for start, end in itertools.pairwise(WALK):
        for name in (start, end):
            if name not in homes:
                raise LookupError(f"no module defines {name}: correct WALK in docs/architecture.py.")
        candidates = [f for f in functions if end in f.returns and end not in f.takes and _walked(f.module)]
        direct = [f for f in candidates if f.takes & {start, *bases[start]}]
        makers = {f.name.split(".")[-1] for f in functions if start in f.returns and _walked(f.module)}
        chosen = direct or [f for f in functions if end in f.returns and f.calls & makers and _walked(f.module)]
        if not chosen:
            raise LookupError(f"no function leads from {start} to {end}: correct WALK in docs/architecture.py.")
        public = [function for function in chosen if not function.private] or chosen
        steps.append((start, end, sorted(public, key=lambda function: (function.module, function.name))))
    return steps


def _walked(module: str) -> bool:
    return not any(module == name or module.startswith(f"{name}.") for name in NOT_WALKED)


def page() -> Iterator[str]:
    """Write the page: the picture, the walk, and the imports."""
    homes = source()[0]
    yield "# Architecture\n"
    yield "This page is generated from the source each time the documentation is built."
    yield "The layers are those that import-linter enforces: a sub-package imports only from the layers below it.\n"
    yield "## The walk of a spec\n"
    yield "Read the picture from left to right. A run passes through the types in the boxes."
    yield "A name between two boxes is the function that leads from one to the other."
    yield "Each box and each name stands in the row of the sub-package that defines it.\n"
    yield "![The walk of a spec through the layers](architecture.svg)\n"
    rows = [(f"`{start}`", f"`{homes[start]}`", _listed(chosen), f"`{end}`") for start, end, chosen in walk()]
    yield from _table(("from", "defined in", "by", "to"), rows)
    yield "\n## Imports between sub-packages\n"
    yield "Each number counts the imports of a module of the column's sub-package by a module of the row's sub-package."
    yield "`plugins` stands for `ddbench.builtin` and every package under `plugins/`.\n"
    counts, order = imports(), bands()
    imported = [name for name in order if any(counts[row, name] for row in order)]
    numbers = [
        (f"`{row}`", *(str(counts[row, name] or "") for name in imported))
        for row in order
        if any(counts[row, name] for name in imported)
    ]
    yield from _table(("", *(f"`{name.removeprefix('ddbench.')}`" for name in imported)), numbers)


def _listed(functions: list[Function]) -> str:
    if len(functions) > LISTED and {band(function.module) for function in functions} == {PLUGINS}:
        return f"one of {len(functions)} functions of plugins, such as `{functions[-1].module}.{functions[-1].name}`"
    return ", ".join(f"`{function.module}.{function.name}`" for function in functions)


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    headings = list(headings)
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def picture() -> str:
    """Draw the walk as an SVG: a band for each sub-package in the order of the layers, a column for each type."""
    homes = source()[0]
    steps = walk()
    sizes = Counter(band(module) for module in graph().modules)
    height = {name: BAND * number for number, name in enumerate(bands())}
    bottom, width = BAND * len(height), LEFT + STEP * len(WALK) + 20
    parts = [f'<rect y="-8" width="{width}" height="{bottom + 8}" fill="white"/>']
    for number, layer in enumerate([[PLUGINS], ["ddbench"], *layers()]):
        top = height[layer[0]]
        shade = "#f4f6f8" if number % 2 else "#e7ecf1"
        parts.append(f'<rect x="0" y="{top}" width="{width}" height="{BAND * len(layer)}" fill="{shade}"/>')
        for name in layer:
            plural = "" if sizes[name] == 1 else "s"
            parts.append(_text(12, height[name] + 19, name, "start", weight="bold"))
            parts.append(_text(12, height[name] + 35, f"{sizes[name]} module{plural}", "start", colour="#667"))
    boxes = [(LEFT + STEP * k + STEP / 2, height[band(homes[name])] + BAND / 2) for k, name in enumerate(WALK)]
    labels = []
    for ((x, y), (next_x, next_y)), (_, _, chosen) in zip(itertools.pairwise(boxes), steps, strict=True):
        middle, level = (x + next_x) / 2, height[band(chosen[0].module)] + BAND / 2
        corners = f"{x:g},{y:g} {middle:g},{level:g} {next_x:g},{next_y:g}"
        parts.append(f'<polyline points="{corners}" fill="none" stroke="#7a8ca0" stroke-width="1.5"/>')
        name = "a method" if band(chosen[0].module) == PLUGINS else chosen[0].name.split(".")[-1] + "()"
        labels.append(_text(middle, level - 15, name, "middle", style="italic", halo=True))
    parts += labels
    for (x, y), name in zip(boxes, WALK, strict=True):
        half = 6 + 3.7 * len(name)
        parts.append(f'<rect x="{x - half:g}" y="{y - 11:g}" width="{2 * half:g}" height="22" rx="4" fill="#2f6f9f"/>')
        parts.append(_text(x, y + 4, name, "middle", colour="white"))
    title = "<title>The walk of a spec through the layers of ddbench</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -8 {width} {bottom + 8}" width="{width}" '
        f'font-family="sans-serif" font-size="12">{title}{"".join(parts)}</svg>\n'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    *,
    colour: str = "#223",
    weight: str = "normal",
    style: str = "normal",
    halo: bool = False,
) -> str:
    outline = ' stroke="white" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}" '
        f'font-style="{style}"{outline}>{html.escape(text)}</text>'
    )
