"""Components: functions of a plugin, read into name, help, options and facts."""

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

import pydantic

from ddbench.contract.facts import did_you_mean as did_you_mean
from ddbench.contract.facts import validated_facts
from ddbench.errors import PluginError, UsageError, blamed_on

KINDS = ("method", "init", "objective", "target", "dataset", "network", "decoder", "modality")
SERVICES = ("launcher",)
"""Kinds of components that are no part of a run."""


def plural(kind: str) -> str:
    """Return the plural of a kind, as hooks and lists are called: methods, modalities."""
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


@dataclass(frozen=True)
class BornLater:
    """Marks an option that is younger than records of its component: `Annotated[int, Field(...), BornLater()]`.

    With the value that older runs had, the option enters no fingerprint, so that they keep theirs. That value never
    changes. `BornLater(False)`, for an option of a method, states one that is not the default: runs from then on do
    better, and older records still mean what was done.

    Attributes:
        value: what runs did before the option was born; `...` stands for the default.
    """

    value: Any = ...


@dataclass(frozen=True)
class Component:
    """A function that a plugin offers, with its help, options and facts.

    Attributes:
        kind: one of `KINDS` or `SERVICES`, such as `method`.
        name: the name on the command line; of a decoder with its version, such as `tiles/v1`.
        function: the decorated function.
        options: a pydantic model of the keyword-only parameters.
        facts: what the decorator declares, such as `companion` or `classes`, validated; see `ddbench.contract.facts`.
        distribution: the package and version, or the file, that it came from.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    options: type[pydantic.BaseModel]
    facts: Mapping[str, Any] = field(default_factory=dict)
    distribution: str = ""

    @property
    def recipe_source(self) -> str:
        """The place where the settings of the method's recipe were published; empty for a method without one."""
        recipe = self.facts.get("recipe")
        return (inspect.getdoc(recipe) or "").split("\n", 1)[0].rstrip(".") if recipe else ""

    @property
    def shown_facts(self) -> dict[str, Any]:
        """The facts as JSON values: tuples are lists; of functions, only a recipe is left, as its source."""
        facts = {key: value for key, value in self.facts.items() if not callable(value)}
        facts |= {"recipe": self.recipe_source} if self.recipe_source else {}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}

    @property
    def option_schema(self) -> dict[str, dict[str, Any]]:
        """The JSON schema of each option: type, bounds, default, description."""
        return dict(self.options.model_json_schema().get("properties", {}))

    @property
    def help(self) -> str:
        """The docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.help.split("\n", 1)[0]

    def validated(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, defaults included, as JSON values.

        An option marked `BornLater` is left out where it has the value of older runs: so it changes no older record.
        Raises `UsageError` for an option that is unknown or has an invalid value.
        """
        known = self.options.model_fields
        for key in options:
            if key not in known:
                raise UsageError(
                    f"{self.kind} {self.name!r} has no option {key!r}.{did_you_mean(key, known)}",
                    f"See its options: ddbench show {self.name}"
                    if known
                    else f"{self.name} takes no options; leave {key} out.",
                )
        try:
            model = self.options.model_validate(dict(options))
            values, born = model.model_dump(mode="json"), self._born_values()
            return {name: value for name, value in values.items() if name not in born or value != born[name]}
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            option = f"{'.'.join(map(str, first['loc']))}={first['input']}"
            message = first["msg"][:1].lower() + first["msg"][1:]
            raise UsageError(
                f"option {option} of {self.kind} {self.name!r}: {message}.",
                f"See its options: ddbench show {self.name}",
            ) from error

    def recorded(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a record with those that `validated` left out, or that were not born yet."""
        return {**self._born_values(), **options}

    def _born_values(self) -> dict[str, Any]:
        """Return the values, as JSON, that younger options had before they were born."""
        defaults = self.options().model_dump(mode="json")
        marks = {
            name: m for name, f in self.options.model_fields.items() for m in f.metadata if isinstance(m, BornLater)
        }
        return {name: defaults[name] if mark.value is ... else mark.value for name, mark in marks.items()}

    def call(self, options: Mapping[str, Any], /, *args: Any) -> Any:
        """Call the function with validated options bound as keyword arguments.

        An exception of the function, other than ddbench's own errors, becomes a `PluginError` that names the component.
        """
        model = self.options.model_validate(self.recorded(options))
        with blamed_on(self.who):
            return self.function(*args, **{name: getattr(model, name) for name in self.options.model_fields})

    @property
    def who(self) -> str:
        """The component as errors name it: `method 'mine' (my-package 1.0)`."""
        return f"{self.kind} {self.name!r}" + (f" ({self.distribution})" if self.distribution else "")

    def named(self, name: str) -> "Component":
        """Return the component under another name: what an open-ended name such as `folder:/path` needs."""
        return replace(self, name=name)


def component(kind: str, function: Callable[..., Any], /, **facts: Any) -> Component:
    """Read name, help and options of `function`, and validate its facts.

    Raises `PluginError` for a function that cannot be a plugin, and for an invalid fact.
    """
    name = function.__name__
    if not inspect.getdoc(function):
        raise PluginError(f"{kind} {name!r} has no docstring.", "Its first line is what `ddbench list` shows.")
    parameters = inspect.signature(function).parameters.values()
    if kind == "init" and sum(p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD for p in parameters) != 1:
        raise PluginError(
            f"{kind} {name!r} does not take one argument.",
            f"Write `def {name}(request: InitRequest, *, options)`: the request has network, info, n, generator, side.",
        )
    fields: dict[str, Any] = {}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise PluginError(f"an annotation of {kind} {name!r} cannot be resolved: {error}.") from error
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            raise PluginError(
                f"{kind} {name!r} takes **{parameter.name}.", "Name each option as a keyword-only parameter."
            )
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if parameter.default is not parameter.empty:
                raise PluginError(
                    f"parameter {parameter.name!r} of {kind} {name!r} has a default but is not an option.",
                    "Options are keyword-only: write `*,` before the first option.",
                )
            continue
        if parameter.default is parameter.empty or parameter.name not in hints:
            raise PluginError(
                f"option {parameter.name!r} of {kind} {name!r} needs a type and a default.",
                f"Write `{parameter.name}: int = 10`.",
            )
        fields[parameter.name] = (hints[parameter.name], parameter.default)
    config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    try:
        model = pydantic.create_model(f"{name}_options", __config__=config, **fields)
        model()
    except (pydantic.ValidationError, pydantic.errors.PydanticUserError, NameError) as error:
        raise PluginError(f"the options of {kind} {name!r} are not valid: {error}") from error
    declared = validated_facts(kind, name, facts)
    full_name = f"{name}/v{declared['version']}" if "version" in declared else name
    return Component(kind, full_name, function, model, declared)


_ATTRIBUTE = "__ddbench_component__"


_Function = TypeVar("_Function", bound=Callable[..., Any])


@runtime_checkable
class Decorator(Protocol):
    """A decorator, used bare (`@ddbench.method`) or with facts (`@ddbench.method(companion=True)`)."""

    @overload
    def __call__(self, function: _Function, /) -> _Function: ...
    @overload
    def __call__(self, **facts: Any) -> Callable[[_Function], _Function]: ...


def _decorator(kind: str) -> Decorator:
    def decorate(function: Callable[..., Any] | None = None, /, **facts: Any) -> Any:
        def mark(target: Callable[..., Any]) -> Callable[..., Any]:
            setattr(target, _ATTRIBUTE, component(kind, target, **facts))
            return target

        return mark if function is None else mark(function)

    article = "an" if kind[0] in "io" else "a"
    decorate.__doc__ = (
        f"Mark a function as {article} {kind}, with facts about it: see the hook `ddbench_{plural(kind)}`."
    )
    return decorate


def component_of(thing: object, kind: str) -> Component:
    """Return the component of a decorated function. Raises `PluginError` for any other object."""
    component = thing if isinstance(thing, Component) else getattr(thing, _ATTRIBUTE, None)
    if not isinstance(component, Component) or component.kind != kind:
        name = getattr(thing, "__name__", repr(thing))
        raise PluginError(f"{name} is not a {kind}.", f"Decorate the function with @ddbench.{kind}.")
    return component


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Return `["steps=25", "init.scheme=kaiming"]` as a flat mapping; a value that is not valid JSON is text."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise UsageError(
                f"--set {assignment!r} is not of the form KEY=VALUE.", "For example: --set outer_steps=500"
            )
        try:
            parsed[key] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key] = text.strip()
    return parsed


method = _decorator("method")
init = _decorator("init")
objective = _decorator("objective")
target = _decorator("target")
dataset = _decorator("dataset")
network = _decorator("network")
decoder = _decorator("decoder")
modality = _decorator("modality")
launcher = _decorator("launcher")
