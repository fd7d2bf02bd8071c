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
    ("kind", "facts", "reason"),
    [
        ("method", {"coresset": True}, "unknown fact 'coresset'. Did you mean 'coreset'?"),
        ("method", {"coreset": 1}, "coreset=1: input should be a valid boolean"),
        ("method", {"peak_memory": 3}, "peak_memory=3: input should be callable"),
        ("network", {"companion": True}, "network 'blur' declares the unknown fact 'companion'."),
        ("dataset", {"classes": ("a", "b")}, "dataset 'blur' does not declare sample_shape."),
        ("dataset", {"classes": ("a", "b"), "sample_shape": (1, 0, 8)}, "greater than or equal to 1"),
        ("dataset", {"classes": "ab", "sample_shape": (1, 8, 8)}, "classes='ab': input should be a valid tuple"),
        ("dataset", {"classes": (0, 1), "sample_shape": (1, 8, 8)}, "input should be a valid string"),
        ("dataset", {"classes": ("a",), "sample_shape": (1, 8, 8), "images_per_class": "2"}, "images_per_class='2'"),
        ("dataset", {"classes": ("a",), "sample_shape": (1, 8, 8), "network": {"options": {}}}, "network={'options': {}}"),
    ],
)  # fmt: skip
def test_invalid_facts_are_refused(kind, facts, reason):
    with pytest.raises(PluginError) as error:
        component(kind, blur, **facts)
    assert reason in error.value.message
    assert error.value.hint


def test_facts_are_converted_and_those_not_declared_stay_absent():
    network = {"name": "convnet", "options": {"width": 8}}
    facts = component("dataset", blur, classes=["a", "b"], sample_shape=[1, 8, 8], network=network).facts
    assert facts == {"classes": ("a", "b"), "sample_shape": (1, 8, 8), "network": network}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"step": 3}, "no option 'step'. Did you mean 'steps'?"),
        ({"steps": 0}, "steps=0 of method 'blur': input should be greater than or equal to 1"),
        ({"steps": "many"}, "steps=many"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"kind": "median"}, "'box' or 'gauss'"),
        ({"bound": float("nan")}, "finite number"),
    ],
)
def test_wrong_options_are_named(options, reason):
    with pytest.raises(UsageError) as error:
        component_of(blur, "method").validated(options)
    assert reason in error.value.message
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


def test_an_option_that_is_born_later_moves_no_fingerprint():
    @ddbench.method
    def before(task: object, run: object, *, a: Annotated[int, Field(description="one")] = 1) -> None:
        """Take one option."""

    @ddbench.method
    def after(
        task: object,
        run: object,
        *,
        a: Annotated[int, Field(description="one")] = 1,
        b: Annotated[int, Field(description="another"), ddbench.BornLater()] = 2,
    ) -> tuple[int, int]:
        """Take two options."""
        return a, b

    old, new = ddbench.component_of(before, "method"), ddbench.component_of(after, "method")
    assert new.validated({"a": 3}) == old.validated({"a": 3}) == new.validated({"a": 3, "b": 2}) == {"a": 3}
    assert new.validated({"b": 5}) == {"a": 1, "b": 5}
    assert new.call(new.validated({}), None, None) == (1, 2)
