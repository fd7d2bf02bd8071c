"""Reference pages made from the code each time the site is built, so that they cannot differ from it."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import architecture
import matching_pictures
import pydantic
import typer
from sphinx.application import Sphinx

import ddbench
from benchmarks.__main__ import RESULTS, Results
from ddbench import testing
from ddbench.cli.app import app
from ddbench.contract import hookspecs
from ddbench.contract.component import KINDS, Component, plural
from ddbench.contract.experts import Experts, Teachers, TrainedNetworks, Trajectories
from ddbench.contract.spec import FLAGS, Choice, RunSpec
from ddbench.contract.task import Networks
from ddbench.discovery.catalog import Catalog
from ddbench.errors import Interrupted, PluginError
from ddbench.networks import features, fit, gradient, logits
from ddbench.pipeline.dry_run import DryRun
from ddbench.pipeline.evaluate import Scores
from ddbench.pipeline.pools import Pool
from ddbench.pipeline.prepare import Prepared
from ddbench.pipeline.suite import SuiteResult
from ddbench.pipeline.sweep import SweepResult
from ddbench.records.columns import COLUMNS
from ddbench.records.ranking import Line, compared, groups
from ddbench.records.result import FULL_DATA
from ddbench.records.stats import Score
from ddbench.records.store import read
from ddbench.render.cards import option_rows
from ddbench.unroll import SGD, Adam, MetaGradient, distance_to, loss_on, meta_gradient

LONG = 70
"""Characters from which a signature is broken into lines."""
LEADERBOARDS = Path(__file__).parent.parent / "leaderboards"
BUDGET = ("images_per_class", "steps", "epochs", "protocol_hash")
"""Columns in which the records of one table of results may differ."""
AUTHORS = (
    Networks,
    features,
    gradient,
    logits,
    fit,
    Experts,
    Trajectories,
    Teachers,
    TrainedNetworks,
    Score,
    PluginError,
    Interrupted,
    meta_gradient,
    MetaGradient,
    SGD,
    Adam,
    loss_on,
    distance_to,
)
"""Names that plugin authors use beside the public ones."""
RETURNED = (DryRun, Prepared, Pool, Scores, SuiteResult, SweepResult)
"""Classes that public functions return."""


def setup(sphinx: Sphinx) -> None:
    """Write the pages before Sphinx looks for them."""
    sphinx.connect("config-inited", lambda site, config: write(Path(site.srcdir) / "reference"))


def write(folder: Path) -> None:
    """Write every page into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text("\n".join(page()) + "\n")
    (folder / "architecture.svg").write_text(architecture.picture())
    matching_pictures.draw(LEADERBOARDS, folder)


def commands() -> Iterator[str]:
    """Yield every command with its arguments, options and examples."""
    group: Any = typer.main.get_command(app)
    yield "# Commands\n"
    yield inspect.cleandoc(group.callback.__doc__ or "")
    yield "\nBefore the command: `ddbench -v COMMAND` shows the traceback of a failure, `ddbench --version` the"
    yield "version; `ddbench --install-completion` completes names in your shell."
    for name, command in _commands(group):
        context = typer.Context(command, info_name=f"ddbench {name}")
        yield f"\n## ddbench {name}\n"
        yield f"    ddbench {name} {' '.join(command.collect_usage_pieces(context))}\n"
        yield inspect.cleandoc(command.help or "") + "\n"
        rows = []
        for parameter in command.params:
            if parameter.name == "help":
                continue
            flags = [*parameter.opts, *parameter.secondary_opts]
            names = ", ".join(flags) if parameter.param_type_name == "option" else parameter.name.upper()
            default = parameter.default if isinstance(parameter.default, str | int | float | Path) else None
            shown = "" if default is None or default is False or default == "" else f"`{default}`"
            rows.append((f"`{names}`", parameter.help or "", shown))
        yield from _table(("option", "what it does", "default"), rows)


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, such as `suite run`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def spec() -> Iterator[str]:
    """Yield the fields of a run spec."""
    yield "# Run spec\n"
    yield inspect.cleandoc(RunSpec.__doc__ or "").partition("Attributes:")[0] + "\n"
    rows = []
    for name, field in RunSpec.model_fields.items():
        flag = f"`--{FLAGS[name]}`" if name in FLAGS else ""
        default = field.default.name if isinstance(field.default, Choice) else field.default
        shown = "" if field.is_required() or default in (None, "") else f"`{default}`"
        rows.append((f"`{name}`", flag, shown, field.description or ""))
    yield from _table(("field", "flag", "default", "meaning"), rows)
    yield "\nA part (method, dataset, network, init, ...) is a name, or a table of name and options. As a file for"
    yield "`ddbench run --config`:\n"
    yield "```toml"
    yield 'dataset = "mnist"\nimages_per_class = 10\nseed = 1\n'
    yield '[method]\nname = "unrolled_gd"\noptions = {outer_steps = 2000, outer_lr = 0.02}\n```'


def options() -> Iterator[str]:
    """Yield every component that comes with ddbench, by kind, with its options."""
    catalog = Catalog()
    yield "# Methods and options\n"
    yield "Set with `--set`: `--set outer_steps=2000` for the method, `--set network.width=64` for the rest."
    for kind in KINDS:
        yield f"\n## {plural(kind).capitalize()}\n"
        for component in catalog.components(kind):
            yield from _component(component)


def _component(component: Component) -> Iterator[str]:
    yield f"\n### {component.name}\n"
    yield inspect.getdoc(component.function) or ""
    options = option_rows(component.option_schema)
    rows = [(f"`{name}`", f"`{kind}`", f"`{default}`", text) for name, kind, default, text in options]
    if rows:
        yield ""
        yield from _table(("option", "type", "default", "meaning"), rows)


def experiments() -> Iterator[str]:
    """Yield every named experiment, with the published figure."""
    yield "# Experiments\n"
    yield "`ddbench run --experiment NAME` runs one; `ddbench show NAME` prints its spec.\n"
    rows = []
    for experiment in Catalog().experiments():
        figure = experiment.published
        shown = "" if figure is None else f"{figure.metric} {figure.mean:g} ({figure.source})"
        rows.append((f"`{experiment.name}`", experiment.summary, shown))
    yield from _table(("experiment", "what it is", "published"), rows)


def hooks() -> Iterator[str]:
    """Yield the contract with plugins."""
    yield "# Hooks\n"
    yield _unindented(hookspecs.__doc__ or "").split("\n\n", 1)[1]
    for name, function in vars(hookspecs).items():
        if name.startswith("ddbench_"):
            arguments = ", ".join(inspect.signature(function).parameters)
            yield f"\n## {name}\n\n    {name}({arguments})\n"
            yield _unindented(function.__doc__ or "")


def _unindented(docstring: str) -> str:
    """Return a docstring as Markdown: without its indentation, attributes as a list."""
    text, mark, fields = inspect.cleandoc(docstring).replace('\\"', '"').partition("Attributes:\n")
    return text + ("\n" + re.sub(r"(?m)^    (\w+): ", r"- `\1`: ", fields) if mark else "")


def columns() -> Iterator[str]:
    """Yield the columns of a leaderboard."""
    yield "# Leaderboard columns\n"
    yield "A CSV holds a row for each record, with raw values. `ddbench.load_leaderboard()` gives the same table."
    yield "Columns of type `list` and `dict` are JSON in a CSV."
    yield "Records are ranked together where the columns marked *ranking* are the same."
    yield "They share a line, averaged over seeds, where those marked *line* are the same too.\n"
    rows = [
        (f"`{c.name}`", f"`{c.kind.__name__}`", c.description, c.compares, f"`{c.flag}`" if c.flag else "")
        for c in COLUMNS
    ]
    yield from _table(("column", "type", "meaning", "compares", "option"), rows)


def api() -> Iterator[str]:
    """Yield the public names, those that plugin authors use beside them, and the classes that they return."""
    yield "# Python API\n"
    yield "`import ddbench` gives these names; importing it loads neither torch nor any plugin.\n"
    for name in sorted(ddbench.__all__, key=str.lower):
        yield from _described(f"ddbench.{name}", getattr(ddbench, name))
    for thing in (*AUTHORS, *RETURNED):
        yield from _described(f"{thing.__module__}.{thing.__name__}", thing)
    yield from _described("ddbench.testing", testing)
    yield "\n" + ", ".join(f"`{name}`" for name in testing.__all__ if name.endswith("Tests")) + " are such classes."


def _described(name: str, thing: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    if inspect.isfunction(thing):
        yield f"```python\n{name}{_signature(thing)}\n```\n"
    if name == "ddbench.hookimpl":
        yield "The mark of a function that is a hook: `@ddbench.hookimpl`."
        return
    if dataclasses.is_dataclass(thing) or (inspect.isclass(thing) and issubclass(thing, pydantic.BaseModel)):
        yield f"```python\n{name}{_signature(thing)}\n```\n"
    yield _unindented(thing.__doc__ or "")
    if not inspect.isclass(thing) or issubclass(thing, Exception):
        return
    for member, value in vars(thing).items():
        function = getattr(value, "__func__", value)
        own = inspect.isfunction(function) and function.__module__ == thing.__module__
        if member.startswith("_") or not (own or isinstance(value, property)):
            continue
        yield f"\n### {thing.__name__}.{member}\n"
        if inspect.isfunction(function):
            yield f"```python\n{member}{_signature(function)}\n```\n"
        yield _unindented(value.__doc__ or "")


def _signature(thing: Any) -> str:
    """Return the arguments of a function, or the fields of a dataclass, as written; a line each where it is long."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, ast.ClassDef):
        parts, end = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)], ")"
    else:
        assert isinstance(node, ast.FunctionDef)
        plain = [*node.args.posonlyargs, *node.args.args]
        defaults = [None] * (len(plain) - len(node.args.defaults)) + node.args.defaults
        parts = [_argument(*pair) for pair in zip(plain, defaults, strict=True)]
        named = [_argument(*pair) for pair in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
        parts += ["*", *named] if named else []
        parts += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
        end = f") -> {ast.unparse(node.returns)}" if node.returns else ")"
    line = f"({', '.join(parts)}{end}"
    return line if len(line) < LONG else "(\n" + "".join(f"    {part},\n" for part in parts) + end


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def results() -> Iterator[str]:
    """Yield the committed records: methods against images per class, a table for each group."""
    yield "# Results\n"
    records = read(LEADERBOARDS) if LEADERBOARDS.is_dir() else []
    if not records:
        yield "There are no records: this copy has no `leaderboards/`, or an empty one."
        return
    yield "Every figure is of a committed leaderboard line: the mean over the networks that scored, with half of its 95"
    yield "% interval (none for a single network). Tables hold lines that differ in method and budget alone; where a"
    yield "method was run with other options too, its best line stands first. `*` marks data that is not the full"
    yield "original."
    tables: dict[tuple[object, ...], list[Line]] = {}
    for group in groups(records):
        record = group[0].first
        common = [column.cell(record) for column in compared(record) if column.name not in BUDGET]
        tables.setdefault(tuple(common), []).extend(group)
    for lines in tables.values():
        higher = lines[0].first.metric.higher_is_better
        yield from _results(
            sorted(
                lines, key=lambda line: (not line.missed, line.score.mean if higher else -line.score.mean), reverse=True
            )
        )


def _results(ordered: list[Line]) -> Iterator[str]:
    record = ordered[0].first
    settings, metric = record.settings, record.metric
    name, at, _ = record.dataset.name.partition("@")
    objective = settings.objective.name
    aims = [objective] if objective != RunSpec.model_fields["objective"].default.name else []
    aims += [settings.target.name] if settings.target else []
    networks = f"{settings.eval_network.name} from {settings.eval_init.name}"
    yield f"\n## {', '.join([name + '*' * bool(at), networks, settings.protocol, *aims])}\n"
    scale, unit = (100, ", %") if metric.unit == "share" else (1, "")
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for line in ordered:
        settings, score = line.first.settings, line.score
        replayed = f" ({settings.steps} x {settings.epochs})" if settings.protocol == "replay/v1" else ""
        budget = f"{settings.images_per_class}{replayed}"
        spread = "" if score.low is None or score.high is None else f" +- {scale * (score.high - score.low) / 2:.1f}"
        method = settings.method.name
        number = next(k for k in range(len(ordered)) if budget not in cells.get((method, k), {}))
        cells.setdefault((method, number), {})[budget] = f"{scale * score.mean:.1f}{spread}"
    budgets = sorted({budget for row in cells.values() for budget in row}, key=lambda budget: int(budget.split()[0]))
    shown = [(f"`{method}`", *(row.get(budget, "") for budget in budgets)) for (method, _), row in cells.items()]
    yield from _table((metric.name + unit, *(f"IPC {budget}" for budget in budgets)), shown)
    full = [line.first.companions[FULL_DATA].mean for line in ordered if FULL_DATA in line.first.companions]
    if full:
        yield f"\nOn the full training data: {scale * full[0]:.1f}."


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield "| " + " | ".join(re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in row) + " |"


def benchmarks() -> Iterator[str]:
    """Yield the measured figures of each machine."""
    yield "# Speed\n"
    yield "Each figure is a ratio: seconds of a named baseline by seconds of ddbench, both measured by turns."
    yield "Each side has a process of its own, and memory is the peak beyond what that process held before."
    yield "`python -m benchmarks` measures your machine; `--save` keeps its figures for this page.\n"
    for path in sorted(RESULTS.glob("*.json")):
        measured = Results.model_validate_json(path.read_text())
        machine = measured.machine
        name = machine["processor"] if machine["device"] == "cpu" else machine["device"]
        yield f"## {name}, {machine['threads']} threads\n"
        yield f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}.\n"
        rows = [
            (
                f"`{case}`", figure.what, figure.baseline, f"{figure.ratio:.2f}",
                f"{figure.low:.2f} to {figure.high:.2f}", f"{figure.goal:g}" if figure.goal else "",
                " / ".join(f"{v:.0f}" for v in figure.megabytes.values()),
            )
            for case, figure in measured.figures.items()
        ]  # fmt: skip
        headings = ("case", "work", "baseline", "ratio", "turns", "goal", "MB, baseline / ddbench")
        yield from _table(headings, rows)
        yield ""


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "spec": spec,
    "results": results,
    "options": options,
    "experiments": experiments,
    "hooks": hooks,
    "columns": columns,
    "api": api,
    "architecture": architecture.page,
    "benchmarks": benchmarks,
}
