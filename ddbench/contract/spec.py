"""The spec of a run: `RunSpec` as it is asked for, `Settings` when everything is decided, with its fingerprint."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from ddbench.contract.attack import AttackName
from ddbench.contract.component import did_you_mean
from ddbench.contract.documented import with_fields
from ddbench.errors import UsageError
from ddbench.machine.files import sha256

Whitening = Literal["zca", "zca-kip"]
"""Kinds of ZCA-whitening; see `ddbench.modalities.whitening`."""
Precision = Literal["float32", "tf32"]
"""Precisions of matrix products and convolutions on CUDA."""

Split = Literal["test", "validation"]
"""Splits that a set can be scored on; only scores on the test split make rows."""

PARTS = ("method", "dataset", "eval_dataset", "network", "eval_network", "init", "eval_init", "objective", "target")
DEFAULT_STEPS = 10
HARD, STORED_SOFT, TEACHER_ONLINE = LABEL_REGIMES = ("hard", "stored soft", "teacher online")
"""Kinds of labels that networks are scored with; records of two kinds are never ranked together."""


class _Frozen(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Choice(_Frozen):
    """A plugin by name, with its options. A bare string stands for the name alone."""

    name: str = Field(min_length=1)
    options: dict[str, Any] = {}

    @classmethod
    def from_name(cls, value: object) -> Self:
        """Return the choice of a bare name or a mapping of the fields."""
        return cls.model_validate(_from_name(value))

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items() if value is not None)
        return f"{self.name}({options})" if options else self.name


def parse_choice(part: str, value: object) -> Choice:
    """Return the choice of a plain value: a name, or a mapping of the fields.

    Raises `UsageError` naming the first invalid field of `part`.
    """
    try:
        return Choice.from_name(value)
    except pydantic.ValidationError as error:
        raise _refusal(error, part) from error


def _refusal(error: pydantic.ValidationError, *parents: str) -> UsageError:
    """Return the error for the first invalid field; `parents` are the names of the fields it stands in."""
    first = error.errors()[0]
    where = ".".join(map(str, (*parents, *first["loc"])))
    if first["type"] == "missing":
        return UsageError(f"no {where} was given.", "See what there is: ddbench list")
    value = "" if isinstance(first["input"], dict) else f" (not {first['input']!r})"
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(f"{where}: {message[:1].lower()}{message[1:]}{value}.", "See: ddbench run --help")


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Choice, BeforeValidator(_from_name)]

Length = Annotated[int, Field(ge=1, le=10_000)]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(value: object) -> object:
    """Return seconds from `90`, `90s`, `15m` or `1.5h`. Raises `ValueError` for other text."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)\s*", value)
    if not match:
        raise ValueError("must be a time such as 90s, 15m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def _split_names(value: object) -> object:
    """Return the names of `fgsm,pgd`; anything but text as it is."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _check_device(value: str) -> str:
    if not re.fullmatch(r"auto|[a-z]+(:\d+)?", value):
        raise ValueError("must be a device such as auto, cpu, cuda or cuda:1")
    return value


class _Fields(_Frozen):
    """The fields that a spec has whether it is asked for or complete."""

    method: Named = Field(description="distillation method")
    dataset: Named = Field(Choice(name="digits"), description="dataset that is distilled")
    eval_dataset: Named | None = Field(
        None, description="dataset whose test split scores; none: that of the dataset that is distilled"
    )
    sample_shape: tuple[Length, Length, Length] | None = Field(
        None, description="channels, height and width that images are converted to; none: as they are"
    )
    init: Named = Field(Choice(name="random"), description="init distribution that networks are drawn from")
    objective: Named = Field(Choice(name="classification"), description="objective of the distilled set")
    target: Named | None = Field(None, description="pretrained-adaptation target; it sets network and init")
    epochs: int = Field(3, ge=1, description="times the steps are cycled through")
    protocol: str = Field("replay/v1", description="protocol that scores the set, or `file:` and a path")
    protocol_content: dict[str, Any] | None = Field(
        None, description="content of the file that the protocol was read from; none: a protocol of ddbench"
    )
    eval_networks: int = Field(20, ge=1, le=10_000, description="networks trained to score the result")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training set that selection happens on")
    seed: int = Field(0, ge=0, description="seed of the distillation; networks that score have their own seeds")
    time_limit: Annotated[float | None, BeforeValidator(parse_duration)] = Field(
        None, gt=0, description="seconds of distillation after which the method stops with what it has"
    )
    smoke: bool = Field(False, description="a few steps on little data, to see that everything works; no row")
    device: Annotated[str, AfterValidator(_check_device)] = Field(
        "auto", description="device that the run takes place on"
    )
    experiment: str = Field("", description="named experiment that the run carries out")
    best_coreset: bool = Field(False, description="compare the score with that of the best coreset too")
    byte_budget: int | None = Field(
        None, ge=1, description="bytes of all tensors that the set may store; none: images alone are counted"
    )
    whitening: Whitening | None = Field(
        None, description="ZCA-whitening of all images by the training split; none: mean 0 and deviation 1 per channel"
    )
    precision: Precision = Field(
        "float32", description="of matrix products and convolutions on CUDA: float32, or tf32 with its 10-bit mantissa"
    )
    step_limit: int | None = Field(
        None, ge=1, description="outer steps of a loop after which the method stops with what it has; none: no limit"
    )
    pass_limit: int | None = Field(
        None,
        ge=1,
        description="examples sent forward through networks after which the method stops; none: no limit",
    )
    split: Split = Field("test", description="split that scores; a score on the validation slice leaves no row")
    attack: Annotated[tuple[AttackName, ...], BeforeValidator(_split_names)] = Field(
        (), description="attacks on test images that trained networks are scored under too"
    )
    trials: int = Field(0, ge=0, description="options tried on the validation slice before these were chosen")


@with_fields
class RunSpec(_Fields):
    """The run that is asked for; `ddbench.plan` decides the fields that are left out.

    The dataset suggests `network` and `images_per_class`. `steps` is the largest divisor of `images_per_class` up to
    10, so that each step has the same number of images per class. `eval_network` is the same as `network`, and
    `eval_init` as `init`, unless they are named.
    """

    network: Named | None = Field(None, description="network; the usual one of the dataset when left out")
    eval_network: Named | None = Field(None, description="network that scores; the same as network when left out")
    eval_init: Named | None = Field(None, description="init distribution of scoring; the same as init when left out")
    images_per_class: int | None = Field(None, ge=1, description="images per class over all steps together (IPC)")
    steps: int | None = Field(None, ge=1, description="gradient steps with a batch of images each")

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Return the spec of plain values. Raises `UsageError` naming the first invalid field."""
        for key in fields:
            if key not in cls.model_fields:
                raise UsageError(
                    f"a run spec has no field {key!r}.{did_you_mean(key, cls.model_fields)}",
                    f"Its fields are {', '.join(cls.model_fields)}.",
                )
        try:
            return cls.model_validate(fields)
        except pydantic.ValidationError as error:
            raise _refusal(error) from error


@with_fields
class Settings(_Fields):
    """Everything that decides what a run computes, complete: every default is filled in, every option spelt out.

    Only `target`, `eval_dataset`, `sample_shape`, `time_limit`, `step_limit`, `pass_limit`, `byte_budget` and
    `whitening` may be None, which then means none.
    """

    network: Named = Field(description="network")
    eval_network: Named = Field(description="network that scores")
    eval_init: Named = Field(description="init distribution of scoring")
    images_per_class: int = Field(ge=1, description="images per class over all steps together (IPC)")
    steps: int = Field(ge=1, description="gradient steps with a batch of images each")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_younger_fields(cls, fields: Any) -> Any:
        """Give fields that an older record does not have the defaults they were born with."""
        return {**_born_defaults(fields), **fields} if isinstance(fields, dict) else fields

    def canonical(self) -> str:
        """Return the same text for the same run on any machine: JSON with sorted keys.

        It leaves out `NOT_COMPUTED`, and every field of `BORN_LATER` that has the default it was born with, so that a
        new field moves no fingerprint.
        """
        fields = self.model_dump(mode="json", exclude=set(NOT_COMPUTED))
        for name, default in _born_defaults(fields).items():
            if fields[name] == default:
                del fields[name]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form."""
        return sha256(self.canonical().encode())

    @property
    def run_id(self) -> str:
        """A short readable name for the run folder, such as `unrolled_gd-svhn-ipc10-3f9a1c`."""
        dataset = re.sub(r"[^A-Za-z0-9]+", "_", self.dataset.name).strip("_")[-40:]
        smoke = "smoke-" if self.smoke else ""
        return f"{smoke}{self.method.name}-{dataset}-ipc{self.images_per_class}-{self.fingerprint[:6]}"

    @property
    def distillation(self) -> Self:
        """The settings that made the set, whatever network and protocol scored it then."""
        usual = {name: type(self).model_fields[name].default for name in SCORING if name != "eval_network"}
        return self.model_copy(update={**usual, "eval_network": self.network})

    def scored_as(self, other: Self) -> Self:
        """Return these settings with the network, the protocol and the number of networks that score of `other`."""
        return self.model_copy(update={name: getattr(other, name) for name in SCORING})

    def asked(self) -> RunSpec:
        """Return the spec that asks for exactly this."""
        return RunSpec.model_validate(self.model_dump())


SCORING = ("eval_network", "eval_dataset", "protocol", "protocol_content", "eval_networks")
"""Fields about scoring alone: a set is the same whatever they are."""
NOT_COMPUTED = ("device", "experiment", "best_coreset", "attack", "trials")
"""Fields that do not change the set or its score in the metric that ranks."""


@dataclass(frozen=True)
class SameAs:
    """The default of a field that has the value of another one."""

    field: str


BORN_LATER: dict[str, Any] = {
    "eval_network": SameAs("network"),
    "byte_budget": None,
    "protocol_content": None,
    "whitening": None,
    "precision": "float32",
    "step_limit": None,
    "pass_limit": None,
    "split": "test",
    "eval_dataset": None,
}
"""Fields younger than the first record, with the JSON defaults they were born with. Such a default never changes."""


def _born_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {}
    for name, default in BORN_LATER.items():
        if isinstance(default, SameAs):
            if default.field in fields:
                defaults[name] = fields[default.field]
        else:
            defaults[name] = default
    return defaults


_SHORT = {"images_per_class": "ipc", "split": "on"}
FLAGS = {
    name: _SHORT.get(name, name.replace("_", "-"))
    for name in RunSpec.model_fields
    if name not in (*NOT_COMPUTED, "smoke", "sample_shape", "validation", "protocol_content")
}
"""Fields of a spec that take a value on the command line, with their flags; `--set` takes the others."""


class Axis(_Frozen):
    """Keys of a run that take the same values together, such as `steps` and `images_per_class`."""

    keys: list[str] = Field(min_length=1)
    values: list[Any] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The name of the axis in tables and pictures."""
        return " = ".join(key.replace("_", " ") for key in self.keys)


class Sweep(_Frozen):
    """One axis, or two: values along the first, a line for each value of the second.

    `plot` is a metric, or a figure that the method logged (its last value counts); the primary metric when empty.
    """

    axes: list[Axis] = Field(min_length=1, max_length=2)
    plot: str = ""

    def assignments(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Yield every point: its values, one for each axis, and the assignments that they make."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            pairs = zip(self.axes, values, strict=True)
            yield values, {key: value for axis, value in pairs for key in axis.keys}


def default_steps(images_per_class: int) -> int:
    """Return the largest divisor of `images_per_class` up to 10."""
    return max(steps for steps in range(1, DEFAULT_STEPS + 1) if images_per_class % steps == 0)


def place_assignments(fields: dict[str, Any], assignments: dict[str, Any], method_options: set[str]) -> dict[str, Any]:
    """Return the `fields` of a spec with `--set` assignments added.

    `init.scheme` is option `scheme` of the init. A plain name is an option of the method if it has one of that name,
    otherwise a field of the spec (`steps`, `epochs`, ...). An unknown name becomes an option, which the method rejects.
    """
    placed = dict(fields)
    for key, value in assignments.items():
        part, dot, option = key.partition(".")
        if dot and part not in PARTS:
            raise UsageError(
                f"--set {key}: there is no part {part!r} of a run.{did_you_mean(part, PARTS)}",
                f"The parts that take options are {', '.join(PARTS)}.",
            )
        if not dot:
            if key not in method_options and key in RunSpec.model_fields and key not in PARTS:
                placed[key] = value
                continue
            part, option = "method", key
        choice = parse_choice(part, placed.get(part) or _default_choice(part))
        placed[part] = {"name": choice.name, "options": {**choice.options, option: value}}
    return placed


def _default_choice(part: str) -> Choice:
    default = RunSpec.model_fields[part].default
    if isinstance(default, Choice):
        return default
    raise UsageError(f"--set {part}.…: no {part} was named.", f"Name it with --{part}.")
