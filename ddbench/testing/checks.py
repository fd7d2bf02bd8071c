"""A check of a component: a function that raises `Failed` with what is wrong and what to do, or `Skipped` with why."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ddbench.contract.component import Component
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError
from ddbench.machine.seeds import seed_everything


class Failed(AssertionError):
    """What is wrong, and what to do about it."""

    def __init__(self, wrong: str, advice: str) -> None:
        super().__init__(f"{wrong} {advice}")
        self.wrong, self.advice = wrong, advice


class Skipped(Exception):
    """Why a check does not apply."""


@dataclass(frozen=True)
class Subject:
    """The component that is checked, the catalog it came from, and a folder of the check's own."""

    component: Component
    catalog: Catalog
    folder: Path


Check = Callable[[Subject], None]


@dataclass(frozen=True)
class Outcome:
    """How one check ended; `text` says why it failed or was skipped."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    text: str = ""
    advice: str = ""


def title(check: Check) -> str:
    """A check's name as people read it."""
    return check.__name__.replace("_", " ")


def outcome(check: Check, subject: Subject) -> Outcome:
    """Carry out a check. What the component raises is its failure."""
    try:
        with restored_globals():
            check(subject)
    except Failed as failure:
        return Outcome(title(check), "failed", failure.wrong, failure.advice)
    except Skipped as reason:
        return Outcome(title(check), "skipped", str(reason))
    except DdbenchError as error:
        return Outcome(title(check), "failed", error.message, error.hint)
    except Exception as error:
        # Far from what is expected, a component can make the check itself stumble.
        text = f"what it returns ends in {type(error).__name__}: {error}."
        return Outcome(title(check), "failed", text, "Mend what the other checks say first.")
    return Outcome(title(check), "passed")


def registered_once(subject: Subject) -> None:
    """Its name belongs to no other component of its kind."""
    component = subject.component
    owners = [c for c in subject.catalog.components(component.kind) if c.name == component.name]
    if len(owners) > 1:
        raise Failed(f"{component.kind} {component.name!r} is registered {len(owners)} times.", "Rename one of them.")


def documented(subject: Subject) -> None:
    """A docstring whose first line is a sentence, and a description or a telling type for each option."""
    component = subject.component
    if not component.summary.rstrip().endswith((".", ":")) or len(component.summary) < 15:
        raise Failed(
            f"the docstring begins {component.summary!r}, which is no sentence.",
            "Write one line that says what it does: it is what `ddbench list` shows.",
        )
    for name, field in component.options.model_json_schema().get("properties", {}).items():
        if not field.get("description"):
            raise Failed(
                f"option {name!r} has no description.",
                f'Write `{name}: Annotated[..., Field(description="what it does")]`.',
            )


def options_are_stable(subject: Subject) -> None:
    """Default options survive JSON and validation unchanged, so a row's options make the same run."""
    import json

    component = subject.component
    defaults = component.validated({})
    again = component.validated(json.loads(json.dumps(defaults)))
    if again != defaults:
        raise Failed(f"default options {defaults} read back as {again}.", "Use types that JSON can hold.")


EVERY: Sequence[Check] = (registered_once, documented, options_are_stable)


@contextlib.contextmanager
def restored_globals() -> Iterator[None]:
    """Put back what a faulty component may have set, so that one check does not spoil the next."""
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
    """Raise `Failed` where the body leaves the process's global state another than it found it."""

    def now() -> dict[str, object]:
        name, keys, *position = np.random.get_state()
        return {
            "torch's random state": torch.get_rng_state().numpy().tobytes(),
            "Python's random state": random.getstate(),
            "numpy's random state": (name, np.asarray(keys).tobytes(), *position),
            "the default dtype": torch.get_default_dtype(),
            "whether gradients are recorded": torch.is_grad_enabled(),
            "torch's deterministic flag": torch.are_deterministic_algorithms_enabled(),
            "the number of threads": torch.get_num_threads(),
        }

    # Whatever the body sets the seed to, it was not that before.
    seed_everything(int.from_bytes(os.urandom(4), "little"))
    before = now()
    yield
    after = now()
    changed = [what for what, value in before.items() if after[what] != value]
    if changed:
        raise Failed(
            f"it changes {' and '.join(changed)}.",
            "Draw from the generator it is given, and put back whatever it sets: other plugins share the process.",
        )
