"""Checks of a plugin: functions that raise `Failed` with a problem and advice, or `Skipped` with a reason."""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ddbench.contract.component import Component
from ddbench.discovery.catalog import Catalog, Experiment, Plugin
from ddbench.errors import DdbenchError
from ddbench.machine.seeds import seed_everything


class Failed(AssertionError):
    """A check that failed: `problem` in one sentence, `advice` in another."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem, self.advice = problem, advice


class Skipped(Exception):
    """A check that does not apply, with the reason."""


@dataclass(frozen=True)
class Subject:
    """The subject of a check, and the folders it may use.

    Attributes:
        thing: the component, the experiment, or the plugin that offers a tracker.
        catalog: the catalog that it came from.
        folder: an empty folder for this check.
        cache: the cache folder of this check, which several checks may share; a folder in `folder` by default.
    """

    thing: Component | Experiment | Plugin
    catalog: Catalog
    folder: Path
    cache: Path | None = None

    @property
    def component(self) -> Component:
        """The component that is checked."""
        assert isinstance(self.thing, Component)
        return self.thing


Check = Callable[[Subject], None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        check: name of the check.
        status: `passed`, `failed` or `skipped`.
        text: the problem, or the reason for skipping.
        advice: what to do about it.
    """

    check: str
    status: Literal["passed", "failed", "skipped"]
    text: str = ""
    advice: str = ""


def kind_of(thing: Component | Experiment | Plugin) -> str:
    """Return the kind of checks that apply: the kind of a component, `experiment` or `tracker`."""
    if isinstance(thing, Component):
        return thing.kind
    return "experiment" if isinstance(thing, Experiment) else "tracker"


def title(check: Check) -> str:
    """Return the name of a check in words."""
    return check.__name__.replace("_", " ")


def outcome(check: Check, subject: Subject) -> Outcome:
    """Carry out a check; an exception of the plugin is a failure."""
    try:
        carry_out(check, subject)
    except Failed as failure:
        return Outcome(title(check), "failed", failure.problem, failure.advice)
    except Skipped as reason:
        return Outcome(title(check), "skipped", str(reason))
    except DdbenchError as error:
        return Outcome(title(check), "failed", error.message, error.hint)
    except Exception as error:
        # A result far from what is expected can make the check itself raise.
        text = f"its result leads to {type(error).__name__}: {error}."
        return Outcome(title(check), "failed", text, "Fix what the other checks report first.")
    return Outcome(title(check), "passed")


def carry_out(check: Check, subject: Subject) -> None:
    """Call a check with a cache folder of its own, and restore the global state of the process afterwards."""
    with restored_globals(), own_cache(subject.cache or subject.folder / "cache"):
        check(subject)


def registered_once(subject: Subject) -> None:
    """Require a name that no other component of the kind has."""
    component = subject.component
    owners = [c for c in subject.catalog.components(component.kind) if c.name == component.name]
    if len(owners) > 1:
        raise Failed(f"{component.kind} {component.name!r} is registered {len(owners)} times.", "Rename one of them.")


def documented(subject: Subject) -> None:
    """Require a docstring whose first line is a sentence, and a description of each option."""
    component = subject.component
    if not component.summary.rstrip().endswith((".", ":")) or len(component.summary) < 15:
        raise Failed(
            f"the docstring begins {component.summary!r}, which is not a sentence.",
            "Write one line that says what it does: `ddbench list` shows it.",
        )
    for name, field in component.option_schema.items():
        if not field.get("description"):
            raise Failed(
                f"option {name!r} has no description.",
                f'Write `{name}: Annotated[..., Field(description="what it does")]`.',
            )


def options_are_stable(subject: Subject) -> None:
    """Require default options that are the same after JSON and validation, so that a row can be run again."""
    component = subject.component
    defaults = component.validated({})
    again = component.validated(json.loads(json.dumps(defaults)))
    if again != defaults:
        raise Failed(f"the default options {defaults} read back as {again}.", "Use types that JSON can hold.")


EVERY: Sequence[Check] = (registered_once, documented, options_are_stable)


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Move the cache folder to `folder`, so that tiny tasks leave nothing in the user's cache."""
    before = os.environ.get("DDBENCH_CACHE")
    os.environ["DDBENCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DDBENCH_CACHE"]
        else:
            os.environ["DDBENCH_CACHE"] = before


@contextlib.contextmanager
def restored_globals() -> Iterator[None]:
    """Restore what a faulty component may have set, so that one check does not affect the next."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def untouched_globals() -> Iterator[None]:
    """Raise `Failed` if the body changes the global state of the process."""

    def now() -> dict[str, object]:
        name, keys, *position = np.random.get_state()
        return {
            "torch's random state": torch.get_rng_state().numpy().tobytes(),
            "Python's random state": random.getstate(),
            "numpy's random state": (name, np.asarray(keys).tobytes(), *position),
            "the default dtype": torch.get_default_dtype(),
            "the recording of gradients": torch.is_grad_enabled(),
            "torch's deterministic flag": torch.are_deterministic_algorithms_enabled(),
            "the number of threads": torch.get_num_threads(),
        }

    # A random seed: a body that sets one cannot hit it by chance.
    seed_everything(int.from_bytes(os.urandom(4), "little"))
    before = now()
    yield
    after = now()
    changed = [what for what, value in before.items() if after[what] != value]
    if changed:
        raise Failed(
            f"it changes {' and '.join(changed)}.",
            "Draw from the generator it is given, and restore what it sets: other plugins share the process.",
        )
