"""The contract with plugins: every hook that ddbench calls.

A plugin is a module with functions marked `@ddbench.hookimpl`. ddbench finds it through an entry point in the group
`ddbench`, or it is named by `--plugin PATH` (or a module), `DDBENCH_PLUGINS` or `plugins = [...]` in `ddbench.toml`.
`DDBENCH_DISABLE` disables plugins, `DDBENCH_TRACE=1` prints every call with its time. A hook may omit arguments that
it does not need. `hookimpl` takes no options of pluggy, such as `wrapper` or `tryfirst`: a plugin that uses one is not
loaded. Registration hooks return iterables of decorated functions.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from ddbench.contract.component import Component
    from ddbench.contract.examples import DatasetInfo
    from ddbench.contract.observer import Observer
    from ddbench.contract.plan import Plan

hookimpl = pluggy.HookimplMarker("ddbench")
_hookspec = pluggy.HookspecMarker("ddbench")


@_hookspec
def ddbench_methods() -> Iterable[object]:  # type: ignore[empty-body]
    """Return distillation methods.

    Each is a function `(task: Task, run: Run, *, options) -> DistilledSet` marked `@ddbench.method`. Facts:
    `companion=True` marks a baseline, shown beside the score of every other method; `coreset=True` marks a subset of
    real images, a candidate of `--best-coreset`; `peak_memory=function`, called as `(task, **options)`, returns
    `(bytes, how)`, the memory that the method is expected to need; `needs=function`, called as `(task, **options)`
    before the clock of the run starts, asks for the experts and teachers that the method will use.

    `supports=function`, called as `(plan: Plan)` before any data are loaded, returns the reason why the method cannot
    serve the plan, or None; such a run is skipped. `recipe=function`, called as `(request: RecipeRequest)`, returns
    the published options by name where they depend on dataset and budget; its docstring names their source. `--set`
    wins over the recipe, and the recipe over the defaults.

        @ddbench.method
        def first_images(task: Task, run: Run) -> DistilledSet:
            \"\"\"Return the first images of the training set, of any class.\"\"\"
            n = task.budget.images_per_class * len(task.info.classes)
            return DistilledSet(task.train.inputs[None, :n], task.train.labels[None, :n])

        @ddbench.hookimpl
        def ddbench_methods():
            return [first_images]
    """


@_hookspec
def ddbench_inits() -> Iterable[object]:  # type: ignore[empty-body]
    """Return init distributions, which initial network weights are drawn from.

    Each is a function `(request: InitRequest, *, options) -> State` marked `@ddbench.init`. The request names the
    network, the dataset's facts, the number `n` of networks, the generator to draw with and the side. It draws from
    pools of pretrained networks (`request.pool`) and from other distributions (`request.other`). The stack may hold
    fewer than `n` networks if the distribution has no more. Parameters alone, `{name: [n, *shape]}`, are enough: then
    every network starts with the module's own buffers.

        @ddbench.init
        def small(request, *, std: float = 0.01):
            \"\"\"Draw normal weights of one small standard deviation.\"\"\"
            return {
                name: std * torch.randn((request.n, *p.shape), generator=request.generator)
                for name, p in request.network.named_parameters()
            }
    """


@_hookspec
def ddbench_objectives() -> Iterable[object]:  # type: ignore[empty-body]
    """Return objectives, the aims that distilled data are made for.

    Each is a function `(info: DatasetInfo, *, options) -> Objective` marked `@ddbench.objective`. The rows of an
    objective go to the leaderboard of its name.

        @ddbench.objective
        def odd_one(info):
            \"\"\"Classify, scored by the error rate.\"\"\"
            def measure(logits, labels):
                return {"error": (logits.argmax(-1) != labels).float().mean().item()}
            return Objective(F.cross_entropy, measure, (Metric("error", "share", higher_is_better=False),))
    """


@_hookspec
def ddbench_targets() -> Iterable[object]:  # type: ignore[empty-body]
    """Return pretrained-adaptation targets: source weights, a network, and the dataset to adapt to.

    Each is a function `(*, options) -> AdaptationTarget` marked `@ddbench.target`. `ddbench run --target NAME` takes
    dataset, network and init distribution from it; `sample` takes an `InitRequest` too. Rows go to
    `adaptation.csv`, with the accuracy without adaptation as a companion.

        @ddbench.target
        def digits_from_usps():
            \"\"\"Adapt LeNets that were trained on USPS to MNIST.\"\"\"
            return AdaptationTarget(dataset="mnist", network="lenet", sample=weights_trained_on_usps)
    """


@_hookspec
def ddbench_datasets() -> Iterable[object]:  # type: ignore[empty-body]
    """Return datasets.

    Each is a function `(root: Path, download: bool, *, options) -> ImageSplits` marked
    `@ddbench.dataset(classes=(...), sample_shape=(c, h, w))`. Further facts: `network` (a name, or `{name, options}`)
    and `images_per_class`, the defaults of a run on this dataset; `label`, its name in records; `modality`, the kind of
    data. Of another modality than "image" it returns `Splits`; `ddbench.modalities` makes those of texts and sounds.

        @ddbench.dataset(classes=("even", "odd"), sample_shape=(1, 8, 8), network="mlp")
        def parity(root, download):
            \"\"\"Load handwritten digits, labelled even or odd.\"\"\"
            ...
    """


@_hookspec
def ddbench_networks() -> Iterable[object]:  # type: ignore[empty-body]
    """Return network architectures.

    Each is a function `(info: DatasetInfo, *, options) -> nn.Module` marked `@ddbench.network`. The fact
    `takes=("text",)` names the modalities whose examples it takes; without it, the network takes any shape that fits.

        @ddbench.network
        def tiny(info, *, width: int = 16):
            \"\"\"Build a network with one hidden layer.\"\"\"
            layers = nn.Linear(math.prod(info.sample_shape), width), nn.ReLU(), nn.Linear(width, len(info.classes))
            return nn.Sequential(nn.Flatten(), *layers)
    """


@_hookspec
def ddbench_decoders() -> Iterable[object]:  # type: ignore[empty-body]
    """Return decoders, which make inputs of the payload of a parametrised set.

    Each is a function `(payload: {name: tensor}, info: DatasetInfo, *, options) -> inputs [n, *sample_shape]` marked
    `@ddbench.decoder(version=1, example=function)`. Its name is that of the function with the version, such as
    `shifted/v1`; a change that moves numbers needs a new version. It is differentiable, draws no random numbers and
    raises `UsageError` for a payload that it cannot decode: files hold payloads too. Inputs are normalised like the
    training data. `example`, called as `(info, generator, **options)`, returns a payload for `ddbench check`.

    A method decodes by `task.decode("shifted/v1", payload)` and returns
    `DistilledSet.encoded("shifted/v1", payload, labels)`. The budget counts the payload, not what it decodes to.

        def random_mean(info, generator):
            return {"mean": torch.randn(info.sample_shape, generator=generator), "shift": torch.tensor([0.0, 0.1])}

        @ddbench.decoder(version=1, example=random_mean)
        def shifted(payload, info):
            \"\"\"Add each of several numbers to one image.\"\"\"
            return payload["mean"] + payload["shift"].view(-1, 1, 1, 1)
    """


@_hookspec
def ddbench_modalities() -> Iterable[object]:  # type: ignore[empty-body]
    """Return modalities, the kinds of data that datasets consist of.

    Each is a function `(splits, request: ExamplesRequest) -> (train, test)` of two `ExampleSet`, marked
    `@ddbench.modality(present=function, example=function)`. It checks what a dataset of this kind has loaded, raising
    `UsageError`, and normalises it by its training split. `info.metadata` of the examples holds, as text, what is
    needed to read them later: every distilled set carries it. `present`, called as `(distilled)`, returns a
    `Presentation` of a set: pixels to draw, lines to read, files to look at or to hear. `example`, called as
    `(generator)`, returns a few examples of two classes for `ddbench check`. `augmentations` names the operations of
    `ddbench.augment` that make sense; methods and protocols that augment by others decline. A dataset names its
    modality as a fact.

        def rows(distilled):
            return Presentation(lines=tuple(str(row) for row in distilled.flat()[0].tolist()))

        def few(generator):
            values, labels = torch.rand(4, 3, generator=generator), torch.tensor([0, 1, 0, 1])
            return Splits(values, labels, values, labels)

        @ddbench.modality(present=rows, example=few)
        def counts(splits, request):
            \"\"\"Take logarithms of counts.\"\"\"
            request.refuse_image_settings()
            return request.examples(splits, splits.train_inputs.log1p(), splits.test_inputs.log1p())
    """


@_hookspec
def ddbench_experiments() -> Iterable[object]:  # type: ignore[empty-body]
    """Return paths of named experiments, TOML files with a run spec. `ddbench run --experiment NAME` runs one.

    A file may hold, beside the fields of the spec, `name`, `summary` and a table `[published]` with the figure to
    compare with: `metric`, `mean`, `std` (fractions), `source`. With a table `[sweep]` it is run at several values:
    `axes`, a list of one or two tables of `keys` and `values`, and `plot`, the figure to draw.

        @ddbench.hookimpl
        def ddbench_experiments():
            return sorted(Path(__file__).parent.glob("experiments/*.toml"))
    """


@_hookspec
def ddbench_suites() -> Iterable[object]:  # type: ignore[empty-body]
    """Return paths of suites, TOML files of tasks that methods are compared on. `ddbench suite run NAME` runs one.

    A file holds `summary`, the `methods` that it compares, `reference`, the companion that gains are measured over,
    and a table `[tasks.NAME]` for each task, with fields of a run spec and `seeds`. Fields in `[task]` are shared by
    all tasks. `[options.METHOD]` sets options of a method. `machine` names the class of machine that time limits are
    meant for, such as `cpu, 2 threads`.

        @ddbench.hookimpl
        def ddbench_suites():
            return sorted(Path(__file__).parent.glob("suites/*.toml"))
    """


@_hookspec
def ddbench_launchers() -> Iterable[object]:  # type: ignore[empty-body]
    """Return launchers, which carry out the runs of a suite or a sweep in other processes: `--launcher NAME`.

    Each is a function `(work: Work, *, options) -> None` marked `@ddbench.launcher`. It starts `work.command(jobs)` for
    some or all of `work.jobs`, anywhere where the folder of the runs is shared, and returns when these processes have
    ended. Their output is its own matter. A job that has no outcome then is given to it again, a few times.

        @ddbench.launcher
        def one_by_one(work: Work):
            \"\"\"Carry out runs in a new process each.\"\"\"
            for job in work.jobs:
                subprocess.run(work.command([job]))

        @ddbench.hookimpl
        def ddbench_launchers():
            return [one_by_one]
    """


@_hookspec(firstresult=True)
def ddbench_find_network(name: str, info: "DatasetInfo") -> "Component | None":
    """Return the network of an open-ended name such as `timm/resnet18`, or None for a name of another plugin."""


@_hookspec(firstresult=True)
def ddbench_find_target(name: str) -> "Component | None":
    """Return the target of an open-ended name such as `timm/resnet18`, or None for a name of another plugin."""


@_hookspec(firstresult=True)
def ddbench_find_dataset(name: str, options: Mapping[str, Any]) -> "Component | None":
    """Return the dataset of an open-ended name such as `folder:/path`, or None for a name of another plugin.

    `options` are the options of the dataset as the user gave them, not validated yet: its classes may depend on them.
    """


@_hookspec
def ddbench_observe(plan: "Plan", folder: Path) -> "Observer | None":
    """Return an observer of the run that begins, or None to leave this run alone.

    `plan` holds the complete settings of the run, `folder` is where it keeps its files. A run that is resumed is
    observed anew, with the same folder. An observer that raises is reported once and disabled; the run goes on.

        class Bell(ddbench.Observer):
            \"\"\"A sound at the end of a run.\"\"\"

            def finished(self, result):
                print(f"\\a{result.run_id}: {result.status}")

        @ddbench.hookimpl
        def ddbench_observe():
            return Bell()
    """


@_hookspec
def ddbench_commands(app: "typer.Typer") -> Any:
    """Add commands to the `ddbench` command line: `app.command("name")(function)`."""
