"""What every tracker says of a run: its settings as flat text, and its figures when it has ended."""

from typing import TYPE_CHECKING

from ddbench import DistilledSet

if TYPE_CHECKING:
    from ddbench import RunResult, RunSpec
    from ddbench.contract.spec import Settings


def settings(spec: "RunSpec | Settings") -> dict[str, str]:
    """The fields of a spec under their dotted names, such as `method.outer_steps`; what is not set is left out."""
    found = {}
    for name, value in spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            found[name] = str(value["name"])
            found |= {f"{name}.{option}": str(chosen) for option, chosen in value["options"].items()}
        elif value not in (None, ""):
            found[name] = str(value)
    return found


def figures(result: "RunResult") -> dict[str, float]:
    """Means over the networks that scored: `score/accuracy`, the same before training, and of the companions."""
    found = {f"score/{name}": score.mean for name, score in result.scores.items()}
    found |= {f"before/{name}": score.mean for name, score in result.before.items()}
    found |= {f"companion/{name}": score.mean for name, score in result.companions.items()}
    if result.seconds is not None:
        found |= {"seconds/distill": result.seconds.distill, "seconds/evaluate": result.seconds.evaluate}
    return found


def distilled(result: "RunResult") -> DistilledSet | None:
    """The set that a run made, or None where it made none."""
    return DistilledSet.load(result.artifact.path) if result.artifact is not None else None
