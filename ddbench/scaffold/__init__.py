"""A new plugin package: files that install, pass their own tests and run at once."""

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from ddbench.contract.component import KINDS
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
}
"""What `ddbench run` is given to try a plugin of each kind."""


@dataclass(frozen=True)
class Made:
    """A new package: its folder, its files, and what to type next."""

    folder: Path
    files: tuple[Path, ...]
    commands: tuple[str, ...]


def new_plugin(name: str, kind: str, into: Path) -> Made:
    """Write the package `ddbench-NAME` with one plugin called `name` into a new folder under `into`.

    Raises `UsageError` for a name that is no Python name, an unknown kind, or a name or folder that is there already.
    """
    import jinja2

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a plugin.", "Use small letters, digits and underscores.")
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}.", f"The kinds are {', '.join(KINDS)}.")
    taken = next((c for c in Catalog().components(kind) if c.name == name), None)
    if taken is not None:
        raise UsageError(f"there is a {kind} {name!r} already ({taken.distribution}).", "Choose another name.")
    package, project = f"ddbench_{name}", f"ddbench-{name.replace('_', '-')}"
    folder = into / project
    if folder.exists():
        raise UsageError(f"{folder} is there already.", "Choose another name, or another folder with --into.")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddbench.scaffold", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    values = {
        "name": name,
        "kind": kind,
        "package": package,
        "project": project,
        "tests": f"{kind.capitalize()}Tests",
        "flags": FLAGS[kind].format(name=name),
    }
    templates = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{package}/__init__.py": f"{kind}.py.jinja",
        f"{package}/py.typed": "",
        f"tests/test_{name}.py": "test.py.jinja",
    }
    files = []
    for path, template in templates.items():
        text = environment.get_template(template).render(values) if template else ""
        atomic_write(folder / path, text)
        files.append(folder / path)
    commands = (f"pip install -e {folder}", f"pytest {folder}", f"ddbench run {values['flags']}")
    return Made(folder, tuple(files), commands)
