"""The catalog: load each plugin in isolation, keep what the plugins offer, and look names up."""

import importlib
import inspect
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy

from ddbench.contract import hookspecs
from ddbench.contract.component import KINDS, SERVICES, Component, component_of, did_you_mean, plural
from ddbench.contract.spec import Choice
from ddbench.discovery.calls import brief, call, hook_name, traced, where
from ddbench.discovery.experiments import Experiment, Published, read_experiment
from ddbench.discovery.plugin_sources import Source, disabled_names, named_plugins, plain, sources
from ddbench.discovery.suites import Suite, read_suite
from ddbench.errors import DdbenchError, PluginError, UsageError

if TYPE_CHECKING:
    from ddbench.contract.examples import DatasetInfo

__all__ = ["SLOW", "BrokenPlugin", "Catalog", "Experiment", "Plugin", "Published"]

SLOW = 2.0
"""Seconds of loading above which a plugin is reported as slow."""
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
FIX = "Fix the plugin, or disable it with DDBENCH_DISABLE={name}."
_HOOK_OF = {kind: f"ddbench_{plural(kind)}" for kind in (*KINDS, *SERVICES)}
_PLUGGY_OPTIONS = ("hookwrapper", "wrapper", "optionalhook", "tryfirst", "trylast", "specname")


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that failed to load and is disabled.

    Attributes:
        name: name of the entry point, or of the file.
        distribution: the package and version, or the file with a digest of its code.
        error: why it failed, in one line.
        path: its path or module name, if it was named by the user.
    """

    name: str
    distribution: str
    error: str
    path: Path | None = None

    @property
    def fix(self) -> str:
        """The remedy, in one sentence."""
        return "Fix the plugin, or leave out its name." if self.path else FIX.format(name=self.name)

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution}) is disabled: {self.error}"


@dataclass
class Plugin:
    """A plugin that is loaded.

    Attributes:
        name: name of the entry point, or of the file.
        distribution: the package and version, or the file with a digest of its code.
        hooks: its functions that implement hooks.
        offers: what it registers, such as `method unrolled_gd`.
        seconds: how long it took to load.
        path: its path or module name, if it was named by the user.
    """

    name: str
    distribution: str
    hooks: list[pluggy.HookImpl] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)
    seconds: float = 0.0
    path: Path | None = None

    @property
    def hook_names(self) -> list[str]:
        """Names of the hooks that it implements."""
        return [hook_name(hook) for hook in self.hooks]

    @property
    def who(self) -> str:
        """The plugin as errors name it: `plugin 'mine' (my-package 1.0)`."""
        return f"plugin {self.name!r} ({self.distribution})"


class Catalog:
    """The components and experiments of the plugins on this machine.

    `paths` are plugin files, package folders or names of modules to load besides the installed plugins. They are added
    to those in `DDBENCH_PLUGINS` (separated like `PATH`) and in the `plugins` list of `./ddbench.toml`. Plugins named
    in `DDBENCH_DISABLE` (by name or distribution, separated by commas) are not loaded.

    Attributes:
        plugins: the plugins that are loaded.
        broken: the plugins that failed to load, with the reason.
        disabled: names of the plugins that `DDBENCH_DISABLE` disables.
    """

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self.plugins: list[Plugin] = []
        self.broken: list[BrokenPlugin] = []
        self.disabled: list[str] = []
        self._components: dict[str, list[Component]] = {kind: [] for kind in (*KINDS, *SERVICES)}
        self._experiments: dict[str, Experiment] = {}
        self._suites: dict[str, Suite] = {}
        self._manager = pluggy.PluginManager("ddbench")
        self._manager.add_hookspecs(hookspecs)
        # Most plugins need it; the first of them must not be reported as slow because of it.
        importlib.import_module("torch")
        unwanted, known = disabled_names(), set()
        for source in sources(named_plugins(paths)):
            names = unwanted & {plain(source.name), plain(source.distribution.split(" ")[0])}
            known |= names
            if names:
                self.disabled.append(source.name)
            else:
                self._load(source)
        self._unknown_disabled = sorted(unwanted - known)

    def components(self, kind: str) -> list[Component]:
        """Return all components of a kind, by name."""
        return sorted(self._components[kind], key=lambda c: c.name)

    def get(
        self, kind: str, name: str, info: "DatasetInfo | None" = None, options: Mapping[str, Any] = NO_OPTIONS
    ) -> Component:
        """Return the component called `name`.

        An open-ended name of a network is resolved for the dataset `info`, one of a dataset for its `options`.

        Raises `UsageError` for an unknown name, with the nearest known one. Raises `PluginError` for a name that two
        plugins claim, or that a broken plugin probably offers.
        """
        owners = [c for c in self._components[kind] if c.name == name]
        if len(owners) > 1:
            raise PluginError(
                f"{kind} {name!r} is registered by both {owners[0].distribution} and {owners[1].distribution}.",
                "Uninstall or rename one of them, or disable one with DDBENCH_DISABLE.",
            )
        component = owners[0] if owners else self.find(kind, name, info, options)
        if component is None:
            self._refuse(kind, name)
        return component

    def _refuse(self, kind: str, name: str) -> NoReturn:
        known = sorted(c.name for c in self._components[kind])
        near = did_you_mean(name, known)
        for broken in self.broken:
            # A plugin file is named because it offers something: likely the component that is missing now.
            if name in (broken.name, broken.name.replace("-", "_")) or (broken.path is not None and not near):
                raise PluginError(f"there is no {kind} {name!r}, and {broken}", broken.fix)
        disabled = f" DDBENCH_DISABLE disables: {', '.join(self.disabled)}." if self.disabled else ""
        raise UsageError(
            f"there is no {kind} called {name!r}.{near}",
            f"Choose one of {', '.join(known) or 'none'}; or load the plugin that offers it: --plugin PATH.{disabled}",
        )

    def warnings(self) -> list[str]:
        """Return a sentence for each broken plugin, each slow one, and each unknown name in `DDBENCH_DISABLE`."""
        unknown = [f"DDBENCH_DISABLE names {name!r}, but there is no such plugin." for name in self._unknown_disabled]
        return [*map(str, self.broken), *self.slow(), *unknown]

    def slow(self) -> list[str]:
        """Return a sentence for each installed plugin that took long to load."""
        return [
            f"{plugin.who} took {plugin.seconds:.1f} s to load, and every run waits for it. "
            f"Disable it with DDBENCH_DISABLE={plugin.name}."
            for plugin in self.plugins
            if plugin.seconds > SLOW and plugin.path is None
        ]

    @property
    def named(self) -> list[Path]:
        """Absolute paths, or module names, of the loaded plugins that the user named."""
        return [plugin.path for plugin in self.plugins if plugin.path is not None]

    def resolve(self, kind: str, choice: Choice, info: "DatasetInfo | None" = None) -> tuple[Component, Choice]:
        """Return the component of a choice, and the choice with all its options. Raises as `get` does."""
        component = self.get(kind, choice.name, info, choice.options)
        return component, Choice(name=choice.name, options=component.validated(choice.options))

    def experiments(self) -> list[Experiment]:
        """Return all named experiments, by name."""
        return [experiment for _, experiment in sorted(self._experiments.items())]

    def experiment(self, name: str) -> Experiment:
        """Return the experiment called `name`. Raises `UsageError` for an unknown one."""
        if name not in self._experiments:
            near = did_you_mean(name, self._experiments)
            raise UsageError(f"there is no experiment {name!r}.{near}", "See: ddbench list experiments")
        return self._experiments[name]

    def suites(self) -> list[Suite]:
        """Return all suites, by name."""
        return [suite for _, suite in sorted(self._suites.items())]

    def suite(self, name: str) -> Suite:
        """Return the suite called `name`, or that of a TOML file. Raises `UsageError` for an unknown one."""
        if name in self._suites:
            return self._suites[name]
        if name.endswith(".toml"):
            if not Path(name).is_file():
                raise UsageError(f"there is no file {name}.", "Give the path of a suite, or see: ddbench suite list")
            try:
                return read_suite(Path(name))
            except PluginError as error:
                raise UsageError(error.message, error.hint) from error
        near = did_you_mean(name, self._suites)
        raise UsageError(f"there is no suite {name!r}.{near}", "See: ddbench suite list")

    def hooks(self, name: str) -> Iterator[tuple[Plugin, pluggy.HookImpl]]:
        """Return the plugins that implement a hook, each with its function; see `ddbench.discovery.calls.call`."""
        for plugin in self.plugins:
            yield from ((plugin, hook) for hook in plugin.hooks if hook_name(hook) == name)

    def find(
        self, kind: str, name: str, info: "DatasetInfo | None" = None, options: Mapping[str, Any] = NO_OPTIONS
    ) -> Component | None:
        """Return the component of an open-ended name, or None if no plugin knows the name."""
        for plugin, hook in self.hooks(f"ddbench_find_{kind}"):
            try:
                component = call(hook, name=name, info=info, options=options)
                if component is not None:
                    return replace(component_of(component, kind), distribution=plugin.distribution)
            except DdbenchError:
                raise
            except Exception as error:
                raise PluginError(
                    f"{plugin.who} failed to look up {name!r}: {brief(error)}.", FIX.format(name=plugin.name)
                ) from error
        return None

    def _load(self, source: Source) -> None:
        started = time.monotonic()
        try:
            module = source.load()
            if self._manager.is_registered(module):
                # Installed, and named by the user too.
                return
            plugin = Plugin(source.name, source.distribution, self._hooks_of(module, source.name), path=source.path)
            components = [
                (kind, component) for kind in (*KINDS, *SERVICES) for component in self._registered(plugin, kind)
            ]
            experiments = [read_experiment(path, source.distribution) for path in _files(plugin, "ddbench_experiments")]
            suites = [read_suite(path, source.distribution) for path in _files(plugin, "ddbench_suites")]
        except (Exception, SystemExit) as error:
            reason = brief(error) + where(error)
            self.broken.append(BrokenPlugin(source.name, source.distribution, reason, source.path))
            return
        plugin.seconds = time.monotonic() - started
        if traced():
            sys.stderr.write(f"{plugin.seconds:8.3f} s  {source.name} ({source.distribution}) loaded\n")
        self.plugins.append(plugin)
        for kind, component in components:
            self._components[kind].append(component)
            plugin.offers.append(f"{kind} {component.name}")
        for experiment in experiments:
            first = self._experiments.setdefault(experiment.name, experiment)
            if first is not experiment:
                reason = f"experiment {experiment.name!r} is offered by {first.distribution} too"
                self.broken.append(BrokenPlugin(source.name, source.distribution, reason))
        for suite in suites:
            earlier = self._suites.setdefault(suite.name, suite)
            if earlier is not suite:
                reason = f"suite {suite.name!r} is offered by {earlier.distribution} too"
                self.broken.append(BrokenPlugin(source.name, source.distribution, reason))

    def _hooks_of(self, module: object, name: str) -> list[pluggy.HookImpl]:
        """Register `module` with pluggy and return its hooks. Raises `PluginError` for any that ddbench cannot call."""
        for function in dir(module):
            options: Mapping[str, object] = self._manager.parse_hookimpl_opts(module, function) or {}
            option = next((option for option in _PLUGGY_OPTIONS if options.get(option)), None)
            if option:
                raise PluginError(
                    f"hook {function!r} uses the option {option}={options[option]!r}, which ddbench does not support.",
                    "Write @ddbench.hookimpl without options.",
                )
        self._manager.register(module, name=f"{name}#{len(self.plugins) + len(self.broken)}")
        callers = self._manager.get_hookcallers(module) or []
        hooks = [h for caller in callers for h in caller.get_hookimpls() if h.plugin is module]
        known = [n for n in dir(hookspecs) if n.startswith("ddbench_")]
        unknown = [hook_name(h) for h in hooks if hook_name(h) not in known]
        if unknown:
            self._manager.unregister(module)
            raise PluginError(f"there is no hook {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
        unmarked = [
            n
            for n, thing in vars(module).items()
            if n.startswith("ddbench_")
            and inspect.isfunction(thing)
            and thing.__module__ == getattr(module, "__name__", "")
            and n not in {hook_name(h) for h in hooks}
        ]
        if unmarked:
            raise PluginError(
                f"function {unmarked[0]!r} looks like a hook but is not marked.", "Add @ddbench.hookimpl."
            )
        if not hooks:
            hint = "Return what it offers from a function such as `ddbench_methods`, marked @ddbench.hookimpl."
            raise PluginError("it has no hooks, so it offers nothing.", hint)
        return hooks

    def _registered(self, plugin: Plugin, kind: str) -> Iterator[Component]:
        for hook in plugin.hooks:
            if hook_name(hook) != _HOOK_OF[kind]:
                continue
            things = call(hook)
            if not isinstance(things, Iterable):
                raise PluginError(f"{_HOOK_OF[kind]} returned {type(things).__name__} instead of a list.")
            for thing in things:
                yield replace(component_of(thing, kind), distribution=plugin.distribution)


def _files(plugin: Plugin, name: str) -> list[Path]:
    """Return the paths that a hook of a plugin returns."""
    return [Path(path) for hook in plugin.hooks if hook_name(hook) == name for path in call(hook)]
