from typing import Annotated, Literal

import pytest
from pydantic import Field

import ddbench
from ddbench.contract.component import component, component_of, did_you_mean, parse_assignments
from ddbench.errors import PluginError, UsageError


@ddbench.method(companion=True)
def blur(
    task,
    run,
    *,
    steps: Annotated[int, Field(ge=1, description="how often")] = 10,
    kind: Literal["box", "gauss"] = "box",
    bound: float | None = None,
    title: str = "",
):
    """Blur the images.

    At some length.
    """
    return task, run, steps, kind, bound, title


def test_a_function_becomes_a_component():
    found = component_of(blur, "method")
    assert (found.name, found.kind, found.summary) == ("blur", "method", "Blur the images.")
    assert found.facts == {"companion": True}
    assert found.options.model_json_schema()["properties"]["steps"]["description"] == "how often"
    assert found.call({"steps": 3, "bound": 0.5}, "task", "run") == ("task", "run", 3, "box", 0.5, "")
    assert found.named("other").name == "other"


def test_options_are_completed_with_their_defaults():
    found = component_of(blur, "method")
    assert found.validated({"steps": "25", "title": 3}) == {"steps": 25, "kind": "box", "bound": None, "title": "3"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"step": 3}, "no option 'step'. Did you mean 'steps'?"),
        ({"steps": 0}, "steps=0 of method 'blur': input should be greater than or equal to 1"),
        ({"steps": "many"}, "steps=many"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"kind": "median"}, "'box' or 'gauss'"),
        ({"bound": float("nan")}, "finite number"),
    ],
)
def test_wrong_options_are_named(given, told):
    with pytest.raises(UsageError) as error:
        component_of(blur, "method").validated(given)
    assert told in error.value.message
    assert "ddbench show blur" in error.value.hint


def undocumented(task, run):
    return None


def untyped(task, run, *, steps=3):
    """Help."""


def without_default(task, run, *, steps: int):
    """Help."""


def variadic(task, run, **options):
    """Help."""


def wrong_default(task, run, *, steps: int = "three"):  # type: ignore[assignment]
    """Help."""


def positional(task, run, steps: int = 3):
    """Help."""


@pytest.mark.parametrize("function", [positional, undocumented, untyped, without_default, variadic, wrong_default])
def test_functions_that_cannot_be_plugins(function):
    with pytest.raises(PluginError):
        component("method", function)


def test_only_decorated_functions_of_the_right_kind_register():
    with pytest.raises(PluginError, match="not a method"):
        component_of(undocumented, "method")
    with pytest.raises(PluginError, match="not a network"):
        component_of(blur, "network")


def test_assignments():
    text = ["steps=25", "init.scheme=kaiming", "clip=.5", "sizes=[1, 2]", "flag=true", "empty="]
    assert parse_assignments(text) == {
        "steps": 25, "init.scheme": "kaiming", "clip": ".5", "sizes": [1, 2], "flag": True, "empty": "",
    }  # fmt: skip
    for wrong in ("steps", "=3", "a b=3"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_assignments([wrong])


def test_near_misses():
    assert did_you_mean("unroled_gd", ["unrolled_gd", "coreset"]) == " Did you mean 'unrolled_gd'?"
    assert did_you_mean("xyz", ["unrolled_gd"]) == ""
