"""Settings and figures of a run as flat mappings, for all trackers."""

from typing import TYPE_CHECKING

import ddbench
from ddbench import DistilledSet

if TYPE_CHECKING:
    from ddbench import RunResult, Settings


def settings(spec: "Settings") -> dict[str, str]:
    """Return the fields of a spec that have a value, under dotted names such as `method.outer_steps`."""
    flat = {}
    for name, value in spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat[name] = str(value["name"])
            flat |= {f"{name}.{option}": str(chosen) for option, chosen in value["options"].items()}
        elif value not in (None, ""):
            flat[name] = str(value)
    return flat


def figures(result: "RunResult") -> dict[str, float]:
    """Return means over the networks that scored: `score/accuracy`, the same before training, and of the companions."""
    means = {f"score/{name}": score.mean for name, score in result.scores.items()}
    means |= {f"before/{name}": score.mean for name, score in result.before.items()}
    means |= {f"companion/{name}": score.mean for name, score in result.companions.items()}
    if result.seconds is not None:
        means |= {"seconds/distill": result.seconds.distill, "seconds/evaluate": result.seconds.evaluate}
    return means


def distilled(result: "RunResult") -> DistilledSet | None:
    """Load the distilled set of a run, with its images; None for a run that has none."""
    if result.artifact is None:
        return None
    loaded = DistilledSet.load(result.artifact.path)
    return ddbench.decode(loaded) if loaded.metadata.get("modality", "image") == "image" else None
