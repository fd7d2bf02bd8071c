"""Facts: what a plugin declares about a component, known without calling it; one model per kind."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from ddbench.errors import PluginError

Length = Annotated[StrictInt, Field(ge=1)]


class _Facts(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _with_docstring(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if function is not None and not inspect.getdoc(function):
        raise ValueError("it has no docstring that says where the settings were published")
    return function


class NoFacts(_Facts):
    """The facts of a kind that has none to declare."""


class MethodFacts(_Facts):
    """The facts of a method: `@ddbench.method(companion=True)`."""

    companion: StrictBool = Field(False, description="a baseline that is shown beside the score of every other method")
    coreset: StrictBool = Field(False, description="a subset of real images, a candidate of --best-coreset")
    peak_memory: Callable[..., tuple[int, str]] | None = Field(
        None, description="called as (task, **options); returns the expected peak in bytes, and how it is reached"
    )
    needs: Callable[..., object] | None = Field(
        None,
        description="called as (task, **options) before the clock of the run starts, to ask for what takes long to "
        "train: task.experts(...), task.teachers(...)",
    )
    labels: Callable[..., object] | None = Field(
        None,
        description="called as (task, distilled, generator, **options); returns the set with the labels that the "
        "method gives, so that companions are scored with the same labels",
    )
    supports: Callable[..., str | None] | None = Field(
        None, description="called as (plan); returns the reason why the method cannot serve it, or None"
    )
    recipe: Annotated[Callable[..., Mapping[str, Any]] | None, AfterValidator(_with_docstring)] = Field(
        None, description="called as (request); returns published options by name; the docstring names their source"
    )


class NamedNetwork(_Facts):
    """A network by name, with options that differ from its defaults."""

    name: StrictStr = Field(min_length=1)
    options: dict[str, Any] = {}


class DatasetFacts(_Facts):
    """The facts of a dataset: `@ddbench.dataset(classes=("a", "b"), sample_shape=(1, 28, 28))`."""

    classes: tuple[StrictStr, ...] = Field(min_length=1, description="names of the classes, in the order of the labels")
    sample_shape: tuple[Length, ...] = Field(
        min_length=1, description="(channels, height, width) of an image, (words, dim) of text"
    )
    network: StrictStr | NamedNetwork = Field("mlp", description="the network of a run that names none")
    images_per_class: Length = Field(10, description="the budget of a run that names none")
    label: StrictStr = Field("", description="the name in records, where the name on the command line is longer")
    modality: StrictStr = Field("image", description="kind of data: the name of a modality, such as image or text")


class NetworkFacts(_Facts):
    """The facts of a network: `@ddbench.network(takes=("text",))`."""

    takes: tuple[StrictStr, ...] = Field((), description="the modalities that it takes; empty for any")


class ModalityFacts(_Facts):
    """The facts of a modality: `@ddbench.modality(present=function, example=function)`."""

    present: Callable[..., object] = Field(
        description="called as (distilled), a set with inputs; returns a Presentation that people can see, read or hear"
    )
    example: Callable[..., object] = Field(
        description="called as (generator); returns a few examples of two classes, as a dataset of this kind loads them"
    )
    augmentations: tuple[StrictStr, ...] = Field(
        (), description="operations of ddbench.augment that make sense for this kind of data"
    )


class DecoderFacts(_Facts):
    """The facts of a decoder: `@ddbench.decoder(version=1, example=function)`."""

    version: Length = Field(description="the version, part of the name; other numbers from a payload need a new one")
    example: Callable[..., Mapping[str, Any]] = Field(
        description="called as (info, generator, **options); returns a payload that the decoder accepts"
    )


FACTS: Mapping[str, type[pydantic.BaseModel]] = {
    "method": MethodFacts,
    "init": NoFacts,
    "objective": NoFacts,
    "target": NoFacts,
    "dataset": DatasetFacts,
    "network": NetworkFacts,
    "decoder": DecoderFacts,
    "modality": ModalityFacts,
    "launcher": NoFacts,
}
"""The facts that each kind of component may declare."""
EXAMPLES = {
    "dataset": 'classes=("a", "b"), sample_shape=(1, 28, 28)',
    "decoder": "version=1, example=random_payload",
    "modality": "present=function, example=function",
}
"""The facts of the kinds that must declare some, as they are written."""


def validated_facts(kind: str, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the declared facts of `kind` `name`, checked and converted; facts that were not declared stay absent.

    Raises `PluginError` for a fact that is unknown, missing or of the wrong type.
    """
    model, who = FACTS[kind], f"{kind} {name!r}"
    known = model.model_fields
    unknown = next((fact for fact in facts if fact not in known), None)
    if unknown is not None:
        hint = f"A {kind} declares: {', '.join(known)}." if known else f"Write @ddbench.{kind} without arguments."
        raise PluginError(f"{who} declares the unknown fact {unknown!r}.{did_you_mean(unknown, known)}", hint)
    missing = [fact for fact, field in known.items() if field.is_required() and fact not in facts]
    if missing:
        raise PluginError(
            f"{who} does not declare {' and '.join(missing)}.",
            f"Write @ddbench.{kind}({EXAMPLES[kind]}).",
        )
    try:
        return model.model_validate(dict(facts)).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        fact = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        value = getattr(facts[fact], "__name__", repr(facts[fact]))
        raise PluginError(
            f"{who} declares {fact}={value}: {message}.", f"{fact}: {known[fact].description}."
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `known`, or an empty text."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
