"""Sources of plugins: installed packages, and files, folders and modules that the user names."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ddbench.errors import PluginError, UsageError
from ddbench.machine.files import sha256

GROUP = "ddbench"
CONFIG_FILE = "ddbench.toml"


@dataclass(frozen=True)
class Source:
    """A plugin that is not loaded yet.

    Attributes:
        name: name of the entry point, or of the file.
        distribution: the package and version, or the file with a digest of its code.
        load: imports and returns the plugin.
        path: its path or module name, if it was named by the user.
    """

    name: str
    distribution: str
    load: Callable[[], object]
    path: Path | None = None


def named_plugins(paths: Iterable[str | Path]) -> dict[Path, Path]:
    """Return `paths` and those of `DDBENCH_PLUGINS` and `./ddbench.toml`, each once: absolute path to path as typed.

    Raises `UsageError` for a configuration file that cannot be read.
    """
    every = [*map(Path, paths), *_paths_from_environment(), *_paths_from_config()]
    return {whole_path(path): path for path in every}


def whole_path(path: Path) -> Path:
    """Return the absolute path of a plugin, or the name of its module: the same wherever ddbench is started."""
    return path if _is_module(path) else path.resolve()


def sources(named: Mapping[Path, Path]) -> Iterator[Source]:
    """Return the installed plugins by name, then the named ones (see `named_plugins`)."""
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
        yield Source(entry.name, distribution, entry.load)
    for whole, path in named.items():
        if _is_module(path):
            load = functools.partial(_import_module, str(path))
            yield Source(str(path), _module_version(str(path)), load, whole)
        else:
            yield Source(path.stem, _file_version(path), functools.partial(_import_path, path), whole)


def code_of(named: Mapping[Path, Path]) -> Iterator[Path]:
    """Yield the file, or the folder of the package, that each installed or named plugin is imported from."""
    modules = [entry.module for entry in importlib.metadata.entry_points(group=GROUP)]
    modules += [str(path) for path in named if _is_module(path)]
    for name in {module.split(".")[0] for module in modules}:
        spec = None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    yield from (path for path in named if not _is_module(path))


def disabled_names() -> set[str]:
    """Return the names of plugins and distributions in `DDBENCH_DISABLE`; `-` and `_` are the same."""
    return {plain(part) for part in os.environ.get("DDBENCH_DISABLE", "").split(",") if part.strip()}


def plain(name: str) -> str:
    """Return a name of a plugin or distribution in the form in which names are compared."""
    return name.strip().lower().replace("-", "_")


def _is_module(path: Path) -> bool:
    """Return True for a module name such as `ddbench_trackers.wandb`: identifiers between dots, and not a file."""
    return not path.exists() and path.suffix != ".py" and all(part.isidentifier() for part in str(path).split("."))


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        hint = "Give a .py file, a folder with __init__.py, or a module that can be imported."
        raise PluginError(f"there is no plugin file and no module {name}.", hint) from error


def _paths_from_environment() -> list[Path]:
    return [Path(part) for part in os.environ.get("DDBENCH_PLUGINS", "").split(os.pathsep) if part]


def _paths_from_config() -> list[Path]:
    path = Path(CONFIG_FILE)
    if not path.is_file():
        return []
    try:
        listed = tomllib.loads(path.read_text()).get("plugins", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Correct or remove it.") from error
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise UsageError(f"plugins in {path} must be a list of paths.", 'For example: plugins = ["my_method.py"]')
    return [Path(item) for item in listed]


def _file_version(path: Path) -> str:
    """Return the name of a plugin file with a digest of its code, which stands in for a version."""
    sources = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    code = b"".join(source.read_bytes() for source in sources if source.is_file())
    return f"{path.name}@{sha256(code)[:8]}" if code else str(path)


def _module_version(name: str) -> str:
    """Return the name of a module with a digest of its code, or the name alone if it cannot be found."""
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit):
        # An exception of the package around it is reported when it is loaded.
        return name
    if spec is None or spec.origin is None:
        return name
    origin = Path(spec.origin)
    version = _file_version(origin.parent if spec.submodule_search_locations else origin)
    return name + version[version.rindex("@") :] if "@" in version else name


def _import_path(path: Path) -> ModuleType:
    """Import a .py file or a package folder that is not installed."""
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        raise PluginError(f"there is no plugin file {source}.", "Give a .py file or a folder with __init__.py.")
    name = path.resolve().stem
    # A name of its own keeps the file from shadowing an importable module of the same name.
    unique = name if path.is_dir() and name not in sys.modules else f"ddbench_plugin_{name}_{sha256(bytes(source))[:8]}"
    locations = [str(path.resolve())] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(unique, source, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise PluginError(f"{source} is not a Python file.", "Give a .py file or a folder with __init__.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module
