"""The contract with plugins: every hook ddbench calls, and nothing else.

A plugin is a module with functions marked `@ddbench.hookimpl`. It is found through an entry point in group
`ddbench`, or named by `--plugin PATH` (or a module), `DDBENCH_PLUGINS` or `plugins = [...]` in `ddbench.toml`.
`DDBENCH_DISABLE` leaves plugins out, `DDBENCH_TRACE=1` tells of every call. A hook may leave out the arguments it
does not need. Registration hooks return iterables of decorated functions.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from ddbench.contract.component import Component
    from ddbench.contract.sets import DatasetInfo
    from ddbench.contract.spec import RunSpec
    from ddbench.records.result import RunResult

hookimpl = pluggy.HookimplMarker("ddbench")
_hookspec = pluggy.HookspecMarker("ddbench")


@_hookspec
def ddbench_methods() -> Iterable[object]:  # type: ignore[empty-body]
    """Distillation methods.

    Each is a function `(task: Task, run: Run, *, options) -> DistilledSet` marked `@ddbench.method`. With
    `@ddbench.method(companion=True)` it is a baseline that every other method's score is shown beside, with
    `coreset=True` one of the real-image subsets of which `--best-coreset` shows the best;
    `peak_memory=function`, called as `(task, **options) -> (bytes, how)`, predicts what the method will take.

        @ddbench.method
        def first_images(task: Task, run: Run) -> DistilledSet:
            \"\"\"The first images of the training set, whatever they show.\"\"\"
            n = task.budget.images_per_class * len(task.info.classes)
            return DistilledSet(task.train.inputs[None, :n], task.train.labels[None, :n])

        @ddbench.hookimpl
        def ddbench_methods():
            return [first_images]
    """


@_hookspec
def ddbench_inits() -> Iterable[object]:  # type: ignore[empty-body]
    """Init distributions: where network weights are drawn from.

    Each is a function `(network, info, n, generator, side, *, options) -> {name: [n, *shape]}` marked
    `@ddbench.init`; `side` is `"train"` or `"evaluation"`. It may return fewer than `n` networks when the
    distribution has no more to give. With a sixth argument, `sources: Sources`, it can draw on pools of pretrained
    networks and on other init distributions.

        @ddbench.init
        def small(network, info, n, generator, side, *, std: float = 0.01):
            \"\"\"Normal weights of one small standard deviation.\"\"\"
            return {
                name: std * torch.randn((n, *p.shape), generator=generator)
                for name, p in network.named_parameters()
            }
    """


@_hookspec
def ddbench_objectives() -> Iterable[object]:  # type: ignore[empty-body]
    """Objectives: what distilled data should achieve.

    Each is a function `(info: DatasetInfo, *, options) -> Objective` marked `@ddbench.objective`. Its rows go to
    the leaderboard of its name.

        @ddbench.objective
        def odd_one(info):
            \"\"\"Classification scored by the error rate.\"\"\"
            def metrics(logits, labels):
                return {"error": (logits.argmax(-1) != labels).float().mean().item()}
            return Objective(F.cross_entropy, metrics, primary="error", higher_is_better=False)
    """


@_hookspec
def ddbench_targets() -> Iterable[object]:  # type: ignore[empty-body]
    """Pretrained-adaptation targets: source weights, a network, and the dataset to adapt to.

    Each is a function `(*, options) -> AdaptationTarget` marked `@ddbench.target`. `ddbench run --target NAME`
    takes dataset and network from it and its init distribution for the weights (which may take `sources` too); rows
    go to `adaptation.csv`, with the accuracy without adaptation as a companion.

        @ddbench.target
        def digits_from_usps():
            \"\"\"LeNets trained on USPS, adapted to MNIST.\"\"\"
            return AdaptationTarget(dataset="mnist", network="lenet", sample=weights_trained_on_usps)
    """


@_hookspec
def ddbench_datasets() -> Iterable[object]:  # type: ignore[empty-body]
    """Named datasets.

    Each is a function `(root: Path, download: bool, *, options) -> ImageSplits` marked
    `@ddbench.dataset(classes=(...), sample_shape=(c, h, w), network="lenet")`: facts that are known without
    loading, `network` being the one used when the user names none.

        @ddbench.dataset(classes=("even", "odd"), sample_shape=(1, 8, 8), network="mlp")
        def parity(root, download):
            \"\"\"Handwritten digits, even or odd.\"\"\"
            ...
    """


@_hookspec
def ddbench_networks() -> Iterable[object]:  # type: ignore[empty-body]
    """Named architectures.

    Each is a function `(info: DatasetInfo, *, options) -> nn.Module` marked `@ddbench.network`.

        @ddbench.network
        def tiny(info, *, width: int = 16):
            \"\"\"One hidden layer.\"\"\"
            layers = nn.Linear(math.prod(info.sample_shape), width), nn.ReLU(), nn.Linear(width, len(info.classes))
            return nn.Sequential(nn.Flatten(), *layers)
    """


@_hookspec
def ddbench_experiments() -> Iterable[object]:  # type: ignore[empty-body]
    """Named experiments: TOML files with a run spec, given as paths. `ddbench run --experiment NAME` runs one.

    A file may hold, beside the fields of the spec, `name`, `summary` and a table `[published]` with the figure it
    answers to: `metric`, `mean`, `std` (fractions), `source`. With a table `[sweep]` it is run at several values:
    `axes`, a list of one or two tables of `keys` and `values`, and `plot`, the figure to draw.

        @ddbench.hookimpl
        def ddbench_experiments():
            return sorted(Path(__file__).parent.glob("experiments/*.toml"))
    """


@_hookspec(firstresult=True)
def ddbench_find_network(name: str, info: "DatasetInfo") -> "Component | None":
    """A network for an open-ended name such as `timm/resnet18`, or None when the name is not this plugin's."""


@_hookspec(firstresult=True)
def ddbench_find_target(name: str) -> "Component | None":
    """A target for an open-ended name such as `timm/resnet18`, or None when the name is not this plugin's."""


@_hookspec(firstresult=True)
def ddbench_find_dataset(name: str) -> "Component | None":
    """A dataset for an open-ended name such as `folder:/path`, or None when the name is not this plugin's."""


@_hookspec
def ddbench_run_started(spec: "RunSpec", run_dir: str) -> None:
    """A run begins; `run_dir` is its folder. Lifecycle hooks that raise are named once and switched off."""


@_hookspec
def ddbench_run_progress(step: int, total: int, values: Mapping[str, float]) -> None:
    """A method logged `values` in outer step `step` of `total`."""


@_hookspec
def ddbench_run_finished(result: "RunResult") -> None:
    """A run ended; `result.status` says how."""


@_hookspec
def ddbench_commands(app: "typer.Typer") -> Any:
    """Add commands to the `ddbench` command line: `app.command("name")(function)`."""
