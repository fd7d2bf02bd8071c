"""The catalog: loads each plugin in isolation, remembers who offers what, and looks names up."""

import importlib
import inspect
import os
import sys
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import pydantic

from ddbench.contract import hookspecs
from ddbench.contract.component import KINDS, Component, component_of, did_you_mean
from ddbench.contract.spec import Choice, Sweep
from ddbench.discovery.plugin_sources import Source, named_by_hand, plain, set_aside_by_user, sources
from ddbench.errors import DdbenchError, PluginError, UsageError

if TYPE_CHECKING:
    from ddbench.contract.sets import DatasetInfo

SLOW = 2.0
"""Seconds of loading from which a plugin is called slow: every command waits for it."""
_HOOK_OF = {kind: f"ddbench_{kind}s" for kind in KINDS}


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was set aside, and why."""

    name: str
    distribution: str
    error: str
    path: Path | None = None
    """Where it lies, or its module, where it was named by hand."""

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution}) was set aside: {self.error}"


class Published(pydantic.BaseModel):
    """A published figure, as a fraction where it is a share; never ranked with measured ones."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    metric: str
    mean: float
    std: float | None = None
    source: str


class Experiment(pydantic.BaseModel):
    """A run spec by name, with the published figure it answers to and, where it is a sweep, what is swept."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    spec: dict[str, Any]
    sweep: Sweep | None = None
    published: Published | None
    distribution: str


@dataclass
class Plugin:
    """A plugin that loaded: its hooks and where it came from."""

    name: str
    distribution: str
    hooks: list[pluggy.HookImpl] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)
    """Names of what it registers, such as `method unrolled_gd`."""
    seconds: float = 0.0
    """How long it took to load."""
    path: Path | None = None
    """Where it lies, or its module, where it was named by hand."""

    @property
    def hook_names(self) -> list[str]:
        """Names of the hooks it implements."""
        return [_name(hook) for hook in self.hooks]


class Catalog:
    """Everything the plugins on this machine offer.

    `paths` are plugin files, package folders or names of modules to load besides the installed ones; they come with
    those named in `DDBENCH_PLUGINS` (separated like `PATH`) and in the `plugins` list of `./ddbench.toml`. Plugins
    named in `DDBENCH_DISABLE` (by name or distribution, separated by commas) are not loaded.
    """

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self.plugins: list[Plugin] = []
        self.broken: list[BrokenPlugin] = []
        self._found: dict[str, list[Component]] = {kind: [] for kind in KINDS}
        self._experiments: dict[str, Experiment] = {}
        self._silenced: set[str] = set()
        self._manager = pluggy.PluginManager("ddbench")
        self._manager.add_hookspecs(hookspecs)
        self.disabled: list[str] = []
        # All need it; the plugin that comes first must not seem slow for it.
        importlib.import_module("torch")
        unwanted, met = set_aside_by_user(), set()
        for source in sources(named_by_hand(paths)):
            names = unwanted & {plain(source.name), plain(source.distribution.split(" ")[0])}
            met |= names
            if names:
                self.disabled.append(source.name)
            else:
                self._load(source)
        self._not_met = sorted(unwanted - met)

    def components(self, kind: str) -> list[Component]:
        """All components of a kind, by name."""
        return sorted(self._found[kind], key=lambda c: c.name)

    def get(self, kind: str, name: str, info: "DatasetInfo | None" = None) -> Component:
        """The component called `name`. `info` is what open-ended network names are resolved for.

        Raises `UsageError` for an unknown name (with a near miss), `PluginError` for a name that belongs to a
        plugin that failed to load or that two plugins claim.
        """
        owners = [c for c in self._found[kind] if c.name == name]
        if len(owners) > 1:
            raise PluginError(
                f"{kind} {name!r} is registered by both {owners[0].distribution} and {owners[1].distribution}.",
                "Uninstall or rename one of them, or leave one out with DDBENCH_DISABLE.",
            )
        if owners:
            return owners[0]
        found = self.find(kind, name, info)
        if found is not None:
            return found
        known = sorted(c.name for c in self._found[kind])
        near = did_you_mean(name, known)
        for broken in self.broken:
            # A plugin file given by hand was meant to offer something: likely what is missing now.
            if name in (broken.name, broken.name.replace("-", "_")) or (broken.path is not None and not near):
                raise PluginError(f"there is no {kind} {name!r}, and {broken}", "Mend the plugin, or leave it out.")
        left_out = f" DDBENCH_DISABLE leaves out: {', '.join(self.disabled)}." if self.disabled else ""
        hint = f"There are: {', '.join(known) or 'none'}.{left_out}"
        raise UsageError(f"there is no {kind} called {name!r}.{near}", hint)

    def warnings(self) -> list[str]:
        """A sentence for each plugin that was set aside, each that is slow, and each name that leaves nothing out."""
        not_met = [f"DDBENCH_DISABLE names {name!r}, which is no plugin here." for name in self._not_met]
        return [*map(str, self.broken), *self.slow(), *not_met]

    def slow(self) -> list[str]:
        """A sentence for each plugin that took long to load without having been asked for."""
        return [
            f"plugin {plugin.name!r} ({plugin.distribution}) took {plugin.seconds:.1f} s to load, and every command "
            f"waits for it. DDBENCH_DISABLE={plugin.name} leaves it out."
            for plugin in self.plugins
            if plugin.seconds > SLOW and plugin.path is None
        ]

    @property
    def named(self) -> list[Path]:
        """Whole paths, and modules, of the plugins that were named by hand and are loaded."""
        return [plugin.path for plugin in self.plugins if plugin.path is not None]

    def resolve(self, kind: str, choice: Choice, info: "DatasetInfo | None" = None) -> tuple[Component, Choice]:
        """A choice's component, and the choice with all its options spelt out."""
        component = self.get(kind, choice.name, info)
        return component, Choice(name=choice.name, options=component.validated(choice.options))

    def experiments(self) -> list[Experiment]:
        """All named experiments, by name."""
        return [experiment for _, experiment in sorted(self._experiments.items())]

    def experiment(self, name: str) -> Experiment:
        """The experiment called `name`. Raises `UsageError` for an unknown one."""
        if name not in self._experiments:
            near = did_you_mean(name, self._experiments)
            raise UsageError(f"there is no experiment {name!r}.{near}", "See: ddbench list experiments")
        return self._experiments[name]

    def notify(self, hook: str, **arguments: object) -> list[str]:
        """Call a lifecycle hook of every plugin; one that raises is switched off. Returns a line for each."""
        complaints = []
        for plugin in self.plugins:
            for implementation in plugin.hooks:
                if _name(implementation) == hook and plugin.name not in self._silenced:
                    try:
                        _call(implementation, arguments)
                    except Exception as error:
                        self._silenced.add(plugin.name)
                        complaints.append(
                            f"plugin {plugin.name!r} ({plugin.distribution}) failed in {hook} and is switched off "
                            f"for this run: {_brief(error)}"
                        )
        return complaints

    def _load(self, source: Source) -> None:
        name, distribution = source.name, source.distribution
        started = time.monotonic()
        try:
            module = source.load()
            if self._manager.is_registered(module):
                # Installed, and named besides.
                return
            plugin = Plugin(name, distribution, self._hooks_of(module, name), path=source.path)
            registered = [(kind, component) for kind in KINDS for component in self._registered(plugin, kind)]
            experiments = [
                _experiment(Path(path), distribution)
                for implementation in plugin.hooks
                if _name(implementation) == "ddbench_experiments"
                for path in _call(implementation, {})
            ]
        except (Exception, SystemExit) as error:
            self.broken.append(BrokenPlugin(name, distribution, _brief(error) + _where(error), source.path))
            return
        plugin.seconds = time.monotonic() - started
        if _traced():
            sys.stderr.write(f"{plugin.seconds:8.3f} s  {name} ({distribution}) loaded\n")
        self.plugins.append(plugin)
        for kind, component in registered:
            self._found[kind].append(component)
            plugin.offers.append(f"{kind} {component.name}")
        for experiment in experiments:
            first = self._experiments.setdefault(experiment.name, experiment)
            if first is not experiment:
                what = f"experiment {experiment.name!r} is offered by {first.distribution} too"
                self.broken.append(BrokenPlugin(name, distribution, what))

    def _hooks_of(self, module: object, name: str) -> list[pluggy.HookImpl]:
        """Register `module` with pluggy and return its hooks; a hook ddbench does not know is an error."""
        unique = f"{name}#{len(self.plugins) + len(self.broken)}"
        self._manager.register(module, name=unique)
        callers = self._manager.get_hookcallers(module) or []
        hooks = [h for caller in callers for h in caller.get_hookimpls() if h.plugin is module]
        known = [n for n in dir(hookspecs) if n.startswith("ddbench_")]
        unknown = [_name(h) for h in hooks if _name(h) not in known]
        if unknown:
            self._manager.unregister(module)
            raise PluginError(f"there is no hook {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
        misspelt = [
            n
            for n, thing in vars(module).items()
            if n.startswith("ddbench_")
            and inspect.isfunction(thing)
            and thing.__module__ == getattr(module, "__name__", "")
            and n not in {_name(h) for h in hooks}
        ]
        if not hooks and not misspelt:
            hint = "Return what it offers from a function such as `ddbench_methods`, marked @ddbench.hookimpl."
            raise PluginError("it has no hooks, so it offers nothing.", hint)
        if misspelt:
            raise PluginError(
                f"function {misspelt[0]!r} looks like a hook but is not marked.", "Add @ddbench.hookimpl."
            )
        return hooks

    def _registered(self, plugin: Plugin, kind: str) -> Iterator[Component]:
        for implementation in plugin.hooks:
            if _name(implementation) != _HOOK_OF[kind]:
                continue
            things = _call(implementation, {})
            if not isinstance(things, Iterable):
                raise PluginError(f"{_HOOK_OF[kind]} returned {type(things).__name__} instead of a list.")
            for thing in things:
                found = component_of(thing, kind)
                yield replace(found, distribution=plugin.distribution)

    def find(self, kind: str, name: str, info: "DatasetInfo | None" = None) -> Component | None:
        """The dataset or network of an open-ended name, or None when no plugin knows it."""
        hook = f"ddbench_find_{kind}"
        for plugin in self.plugins:
            for implementation in plugin.hooks:
                if _name(implementation) != hook:
                    continue
                try:
                    found = _call(implementation, {"name": name, "info": info})
                    if found is not None:
                        return replace(component_of(found, kind), distribution=plugin.distribution)
                except DdbenchError:
                    raise
                except Exception as error:
                    raise PluginError(
                        f"plugin {plugin.name!r} ({plugin.distribution}) failed to look up {name!r}: {_brief(error)}."
                    ) from error
        return None


def _name(implementation: pluggy.HookImpl) -> str:
    return implementation.function.__name__


def _call(implementation: pluggy.HookImpl, arguments: dict[str, Any]) -> Any:
    """Call one hook with the arguments it names, so that plugins for an older contract still work.

    With `DDBENCH_TRACE=1` in the environment, a line on stderr for each call says how long it took and how it ended.
    """
    if not _traced():
        return implementation.function(*[arguments[name] for name in implementation.argnames])
    started, ended = time.monotonic(), ""
    try:
        return implementation.function(*[arguments[name] for name in implementation.argnames])
    except BaseException as error:
        ended = f"  raised {_brief(error)}"
        raise
    finally:
        plugin = implementation.plugin_name.split("#")[0]
        sys.stderr.write(f"{time.monotonic() - started:8.3f} s  {plugin} {_name(implementation)}{ended}\n")


def _traced() -> bool:
    return os.environ.get("DDBENCH_TRACE", "") not in ("", "0")


def _where(error: BaseException) -> str:
    """The last line of code outside of ddbench that an exception came through, in brackets."""
    own = str(Path(__file__).parent) + os.sep
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((own, "<"))]
    frames = [f for f in frames if "importlib" not in f.filename]
    if isinstance(error, DdbenchError) or not frames:
        return ""
    file = Path(frames[-1].filename)
    name = f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name
    return f" ({name}, line {frames[-1].lineno})"


def _brief(error: BaseException) -> str:
    if isinstance(error, DdbenchError):
        return f"{error.message} {error.hint}".strip()
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _experiment(path: Path, distribution: str) -> Experiment:
    """Read a TOML file of spec fields with `name`, `summary` and, where there is one, `[published]`."""
    try:
        fields = tomllib.loads(path.read_text())
        described = {key: fields.pop(key, None) for key in ("name", "summary", "published", "sweep")}
        described = {**described, "name": described["name"] or path.stem, "summary": described["summary"] or ""}
        return Experiment(**described, spec=fields, distribution=distribution)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, pydantic.ValidationError) as error:
        raise PluginError(f"experiment {path}: {error}.") from error
