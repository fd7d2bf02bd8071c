"""New plugins: packages that install, pass their tests and run at once, or further modules of a package.

May import: discovery, contract, machine and errors.
Imported by: cli.
"""

import keyword
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ddbench.contract.component import KINDS, did_you_mean
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.machine.files import atomic_write

FLAGS = {
    "method": "--method {name} --smoke",
    "init": "--method random_subset --init {name} --smoke",
    "objective": "--method random_subset --objective {name} --smoke",
    "target": "--method random_subset --target {name} --smoke",
    "dataset": "--method random_subset --dataset {name} --smoke",
    "network": "--method random_subset --network {name} --smoke",
    "decoder": "--method {name}_subset --smoke",
    "modality": "--method random_subset --dataset {name}_data --smoke",
    "tracker": "--method random_subset --smoke",
}
"""Arguments of `ddbench run` that try a plugin of each kind."""
FAMILIES = {
    "gradient-matching": "train/v1",
    "distribution-matching": "train-dsa/v1",
    "trajectory-matching": "train-dsa-rate/v1",
}
"""Families of methods with a template of their own (DC, DM, MTT), and the protocol of their published figures."""
ENTRY_POINTS = "[project.entry-points.ddbench]"


@dataclass(frozen=True)
class Written:
    """The files of a new plugin.

    Attributes:
        folder: the folder of the package.
        files: the files that were written.
        commands: what to type next.
    """

    folder: Path
    files: tuple[Path, ...]
    commands: tuple[str, ...]


def new_plugin(name: str, kind: str, into: Path, family: str | None = None) -> Written:
    """Write a plugin called `name`: a package `ddbench-NAME` in `into`, or a module if `into` is a plugin package.

    A folder is a plugin package if its pyproject.toml has entry points of ddbench. `family`, one of `FAMILIES`, writes
    a published method of that family. Raises `UsageError` for a name that is not a Python name, for an unknown kind or
    family, for a family of another kind than a method, and for a name, folder or file that exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a plugin.", "Use small letters, digits and underscores.")
    if kind not in FLAGS:
        raise UsageError(f"there is no kind {kind!r}.{did_you_mean(kind, FLAGS)}", f"The kinds are {', '.join(FLAGS)}.")
    if family is not None and kind != "method":
        raise UsageError(
            f"--family is for methods; {name!r} is to be of the kind {kind}.", "Leave out --family, or --kind."
        )
    if family is not None and family not in FAMILIES:
        raise UsageError(
            f"there is no family {family!r}.{did_you_mean(family, FAMILIES)}",
            f"The families are {', '.join(FAMILIES)}.",
        )
    registered = f"{name}/v1" if kind == "decoder" else name
    catalog = Catalog()
    known = catalog.components(kind) if kind in KINDS else catalog.plugins
    taken = next((thing for thing in known if thing.name == registered), None)
    if taken is not None:
        raise UsageError(f"there is a {kind} {name!r} already ({taken.distribution}).", "Choose another name.")
    package = _package(into)
    values = {
        "name": name,
        "kind": kind,
        "template": f"method_{family.replace('-', '_')}.py.jinja" if family else f"{kind}.py.jinja",
        "registered": registered,
        "tests": f"{kind.capitalize()}Tests",
        "title": "".join(word.capitalize() for word in name.split("_")),
        "flags": FLAGS[kind].format(name=name) + (f" --protocol {FAMILIES[family]}" if family else ""),
    }
    return _add_module(into, package, values) if package else _new_package(into, values)


def _new_package(into: Path, values: dict[str, str]) -> Written:
    name, package = values["name"], f"ddbench_{values['name']}"
    project = package.replace("_", "-")
    folder = into / project
    if folder.exists():
        raise UsageError(f"{folder} exists already.", "Choose another name, or another folder with --into.")
    templates = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{package}/__init__.py": values["template"],
        f"{package}/py.typed": "",
        f"tests/test_{name}.py": "test.py.jinja",
    }
    return _write(folder, templates, {**values, "package": package, "project": project})


def _add_module(folder: Path, package: Path, values: dict[str, str]) -> Written:
    """Write a module and its test into a plugin package, and register it in pyproject.toml."""
    name, project = values["name"], folder / "pyproject.toml"
    templates = {
        f"{package.relative_to(folder)}/{name}.py": values["template"],
        f"tests/test_{name}.py": "test.py.jinja",
    }
    existing = next((folder / path for path in templates if (folder / path).exists()), None)
    if existing is not None:
        raise UsageError(f"{existing} exists already.", "Choose another name.")
    text = project.read_text()
    registered = text.replace(ENTRY_POINTS, f'{ENTRY_POINTS}\n{name} = "{package.name}.{name}"', 1)
    if name in _entry_points(text) or name not in _entry_points(registered):
        raise UsageError(
            f"{project} cannot be extended by {name!r}.", f"It needs a table {ENTRY_POINTS} without that name."
        )
    written = _write(folder, templates, values)
    atomic_write(project, registered)
    return Written(folder, (*written.files, project), written.commands)


def _package(folder: Path) -> Path | None:
    """Return the import package of the plugin package in `folder`, or None if there is none."""
    project = folder / "pyproject.toml"
    if not project.is_file():
        return None
    for module in _entry_points(project.read_text()).values():
        top = module.split(".")[0]
        for package in (folder / top, folder / "src" / top):
            if package.is_dir():
                return package
    return None


def _entry_points(text: str) -> dict[str, str]:
    """Return the entry points of ddbench in the text of a pyproject.toml."""
    try:
        points = tomllib.loads(text).get("project", {}).get("entry-points", {}).get("ddbench", {})
    except tomllib.TOMLDecodeError:
        return {}
    return {str(name): str(module) for name, module in points.items()}


def _write(folder: Path, templates: dict[str, str], values: dict[str, str]) -> Written:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddbench.scaffold", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    for path, template in templates.items():
        text = environment.get_template(template).render(values) if template else ""
        atomic_write(folder / path, text)
    commands = (f"pip install -e {folder}", f"pytest {folder}", f"ddbench run {values['flags']}")
    return Written(folder, tuple(folder / path for path in templates), commands)
