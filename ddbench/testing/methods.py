"""Checks of distillation methods, each on a task of some hundred images."""

import contextlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ddbench.contract.observer import Silent
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import RunSpec
from ddbench.contract.task import Task
from ddbench.errors import Interrupted, PluginError, Unsupported, UsageError, blamed_on
from ddbench.machine.seeds import seed_everything
from ddbench.pipeline.plan import plan_run, reason_to_skip
from ddbench.protocols.replay import REPLAY_V1
from ddbench.testing import tiny as small
from ddbench.testing.checks import EVERY, Check, Failed, Skipped, Subject, restored_globals, untouched_globals
from ddbench.testing.tiny import Tiny

FEW_STEPS = 4
LAYERS: tuple[small.Layer, ...] = ("batch norm", "dropout")
LONG = 2.0
"""Seconds that a method may run without reporting progress."""


@dataclass
class _Attempt:
    """One call of a method: its task, its result, and what it reported."""

    task: Task
    run: Run
    result: DistilledSet | None = None
    files: list[str] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)
    seconds: float = 0.0
    logged: bool = False
    drew: bool = False

    @property
    def distilled(self) -> DistilledSet:
        assert self.result is not None
        return self.result


def _attempt(
    subject: Subject,
    tiny: Tiny,
    seed: int = 0,
    *,
    folder: Path | None = None,
    steps: int | None = FEW_STEPS,
    seconds: float | None = None,
    stop_at: int | None = None,
) -> _Attempt:
    """Call the method as a run does, in a folder of its own; `stop_at` simulates Ctrl-C after that step."""
    folder = folder or Path(tempfile.mkdtemp(dir=subject.folder))

    def on_progress(step: int, total: int, values: Mapping[str, float]) -> None:
        attempt.progress.append(step)
        attempt.logged = attempt.logged or bool(values)
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)

    plan = small.plan(subject.catalog, tiny, subject.component)
    reason = reason_to_skip(plan)
    if reason:
        raise Unsupported(reason)
    run = Run(folder, seed=seed, most_steps=steps, time_limit=seconds, on_progress=on_progress)
    attempt = _Attempt(small.task(subject.catalog, tiny, run.generator), run)
    before = run.generator.get_state()
    seed_everything(seed)
    # An empty working folder shows what the method writes there.
    options = plan.settings.method.options
    with restored_globals(), contextlib.chdir(tempfile.mkdtemp(dir=subject.folder)):
        if needs := subject.component.facts.get("needs"):
            with blamed_on(subject.component.who):
                needs(attempt.task, **options)
        began = time.monotonic()
        attempt.result = subject.component.call(options, attempt.task, run)
        attempt.seconds = time.monotonic() - began
        attempt.files = sorted(path.name for path in Path().iterdir())
    run.finish()
    attempt.drew = not torch.equal(before, run.generator.get_state())
    if not isinstance(attempt.result, DistilledSet):
        raise Failed(f"it returns {type(attempt.result).__name__}.", "Return a ddbench.DistilledSet.")
    return attempt


def _supported(subject: Subject) -> Tiny:
    """Return the first tiny task that the method supports. Raises `Failed` if it supports none."""
    reasons = []
    names = [c.name for c in subject.catalog.components("objective")]
    for objective in sorted(names, key=lambda name: name != "classification"):
        shapes: tuple[tuple[bool, int, small.Layer], ...] = (
            (False, 2, ""), (False, 1, ""), (True, 1, ""), (False, 2, "batch norm"), (False, 1, "batch norm")
        )  # fmt: skip
        for linear, steps, layer in shapes:
            tiny = Tiny(objective=objective, linear=linear, steps=steps, epochs=steps, layer=layer)
            try:
                _attempt(subject, tiny)
            except (Unsupported, UsageError) as reason:
                reasons.append(reason.message)
                continue
            return tiny
    raise Failed(f"it supports no task: {reasons[0]}", "Support the classification of small images, two per class.")


def honours_shapes_and_budget(subject: Subject) -> None:
    """Require a set with the declared shapes, types and device, finite, and within the budget."""
    attempt = _attempt(subject, _supported(subject))
    try:
        attempt.distilled.validate(attempt.task, "it returns")
    except PluginError as error:
        raise Failed(error.message, error.hint) from error
    for name, tensor in attempt.distilled.tensors.items():
        if tensor.device.type != attempt.run.device.type:
            raise Failed(f"it returns {name} on {tensor.device}.", "Leave its tensors on run.device.")


def same_seed_same_bytes(subject: Subject) -> None:
    """Require the same bytes from a second call with the same seed."""
    tiny = _supported(subject)
    first = _attempt(subject, tiny)
    torch.rand(7)
    if _bytes(first.distilled) != _bytes(_attempt(subject, tiny).distilled):
        raise Failed(
            "two calls with the same seed differ.", "Draw every random number from run.generator, in a fixed order."
        )


def another_seed_other_bytes(subject: Subject) -> None:
    """Require other bytes for other seeds from a method that draws random numbers."""
    tiny = _supported(subject)
    first = _attempt(subject, tiny)
    if not first.drew:
        raise Skipped("it draws no random numbers")
    if all(_bytes(_attempt(subject, tiny, seed).distilled) == _bytes(first.distilled) for seed in range(1, 5)):
        raise Failed("five seeds give the same bytes.", "Draw from run.generator, not from a fixed seed.")


def leaves_global_state_alone(subject: Subject) -> None:
    """Require that random state, default dtype, gradient mode, deterministic flag and threads stay the same."""
    tiny = _supported(subject)
    folder = Path(tempfile.mkdtemp(dir=subject.folder))
    run = Run(folder, most_steps=FEW_STEPS)
    task = small.task(subject.catalog, tiny, run.generator)
    options = subject.component.validated({})
    with untouched_globals(), contextlib.chdir(folder):
        subject.component.call(options, task, run)


def leaves_its_task_alone(subject: Subject) -> None:
    """Require that training images, labels and the weights of the network stay the same."""
    tiny = _supported(subject)
    before = small.task(subject.catalog, tiny, torch.Generator().manual_seed(0))
    attempt = _attempt(subject, tiny)
    after = attempt.task
    for what, one, two in (("inputs", before.train.inputs, after.train.inputs), ("labels", before.train.labels,
                                                                                after.train.labels)):  # fmt: skip
        if not torch.equal(one, two):
            raise Failed(f"it changes task.train.{what}.", "Clone the tensor before writing to it.")
    weights = after.networks.module.state_dict()
    if any(not torch.equal(weights[name], tensor) for name, tensor in before.networks.module.state_dict().items()):
        raise Failed("it changes the weights of task.networks.module.", "Draw from task.networks.sample, or copy it.")
    if any(p.requires_grad and p.grad is not None for p in after.networks.module.parameters()):
        raise Failed("it leaves gradients in task.networks.module.", "Use torch.func.functional_call, or a copy.")


def leaves_running_statistics_alone(subject: Subject) -> None:
    """Require that batch normalisation's running statistics, and the mode of every layer, stay the same."""
    tiny = _supported(subject)
    if tiny.linear:
        raise Skipped("it supports linear networks alone")
    for layer in LAYERS:
        other = replace(tiny, layer=layer)
        try:
            module = _attempt(subject, other).task.networks.module
        except (Unsupported, UsageError):
            continue
        before = dict(small.task(subject.catalog, other, torch.Generator()).networks.module.named_buffers())
        if any(not torch.equal(buffer, before[name]) for name, buffer in module.named_buffers()):
            raise Failed(
                "it changes the running statistics of task.networks.module.",
                "Let the functions of ddbench.networks run it, or call a copy.",
            )
        if any(part.training for part in module.modules()):
            raise Failed(
                f"it leaves task.networks.module in training mode (a network with {layer}).",
                "Put it back with module.eval(), or use ddbench.networks.inner_mode, which restores it.",
            )


def has_a_recipe_for_every_dataset(subject: Subject) -> None:
    """Require that a recipe sets options that exist, to valid values, on every dataset and budget."""
    method, catalog = subject.component, subject.catalog
    if "recipe" not in method.facts:
        raise Skipped("it has no recipe")
    for dataset in catalog.components("dataset"):
        for count in (1, 10, 50):
            spec = {"method": method.name, "dataset": dataset.name, "images_per_class": count}
            plan_run(RunSpec.parse(spec), catalog)


def writes_only_in_its_folder(subject: Subject) -> None:
    """Require that no file appears in the working folder."""
    files = _attempt(subject, _supported(subject)).files
    if files:
        raise Failed(f"it writes {', '.join(files)} to the working folder.", "Write nothing, or to the cache folder.")


def reports_progress(subject: Subject) -> None:
    """Require logged figures from a method that loops, and progress from one that takes more than two seconds."""
    tiny = _supported(subject)
    attempt = _attempt(subject, tiny)
    if attempt.seconds > LONG and not attempt.progress:
        raise Failed(
            f"it runs for {attempt.seconds:.0f} s without progress.", "Loop with `for step in run.loop(steps, state)`."
        )
    if attempt.progress and not attempt.logged:
        advice = "Call `run.log(loss=loss)` in each step: curves and the recovery from NaN need it."
        raise Failed("it loops, but logs no figures.", advice)


def resumes_to_the_same_bytes(subject: Subject) -> None:
    """Require the same bytes from a run that is stopped in the middle and resumed."""
    tiny = _supported(subject)
    whole = _attempt(subject, tiny)
    if len(whole.progress) < FEW_STEPS:
        raise Skipped("it has no loop of several steps")
    if threading.current_thread() is not threading.main_thread():
        raise Skipped("only the main thread can be interrupted")
    folder = Path(tempfile.mkdtemp(dir=subject.folder))
    try:
        _attempt(subject, tiny, folder=folder, stop_at=2)
    except Interrupted:
        pass
    else:
        raise Failed("it continues after Ctrl-C.", "Do not catch the exception of run.loop.")
    if _bytes(_attempt(subject, tiny, folder=folder).distilled) != _bytes(whole.distilled):
        raise Failed(
            "a resumed run gives other bytes than an uninterrupted one.",
            "Name everything that changes from step to step in the state of run.loop.",
        )


def takes_colour_and_two_classes(subject: Subject) -> None:
    """Require that three channels and two classes work, or are refused with a reason."""
    tiny = _supported(subject)
    for other in (replace(tiny, channels=3), replace(tiny, classes=2)):
        try:
            attempt = _attempt(subject, other)
        except (Unsupported, UsageError) as reason:
            if len(reason.message) < 10:
                raise Failed("it refuses without a reason.", "Give one: raise ddbench.Unsupported(...)") from reason
            continue
        attempt.distilled.validate(
            attempt.task, f"with {other.channels} channels and {other.classes} classes it returns"
        )


def does_better_than_chance(subject: Subject) -> None:
    """Require that networks trained on its set distinguish easy classes."""
    tiny = _supported(subject)
    if tiny.objective != "classification":
        raise Skipped(f"its objective is {tiny.objective}")
    if subject.component.facts.get("labels") is not None:
        raise Skipped("its images are for the labels of a teacher, which a tiny task hardly trains")
    attempt = _attempt(subject, tiny, steps=None, seconds=20.0)
    distilled = attempt.distilled.decoded(attempt.task.decode)
    setting = small.setting(subject.catalog, tiny)
    if distilled.lrs is not None and not distilled.lrs.dim():
        # A single rate is for any number of steps, often more than a tiny task has: the best fixed rate replaces it.
        distilled = replace(distilled, lrs=None)
    scores = REPLAY_V1.evaluate([distilled], setting, 5, Silent())
    values = scores.scores["accuracy"]
    mean = sum(values) / len(values)
    if mean < 1.5 / tiny.classes:
        raise Failed(
            f"networks trained on its set reach {100 * mean:.0f} % where chance is {100 / tiny.classes:.0f} %.",
            "Look at the images: are labels and inputs in the same order, and inputs normalised?",
        )


def survives_its_file(subject: Subject) -> None:
    """Require that the set is the same after saving and loading."""
    attempt = _attempt(subject, _supported(subject))
    path = attempt.run.log_path.with_name("set.safetensors")
    # A run writes the shape of samples into the file of a payload.
    attempt.distilled.described(sample_shape=list(attempt.task.info.sample_shape)).save(path)
    if _bytes(DistilledSet.load(path)) != _bytes(attempt.distilled):
        raise Failed("the set differs after saving and loading.", "Return plain float32 tensors.")


def _bytes(distilled: DistilledSet) -> bytes:
    names = [distilled.kind, distilled.decoder, json.dumps(dict(distilled.decoder_options), sort_keys=True)]
    parts = ["\n".join(names).encode()]
    for name, tensor in sorted(distilled.tensors.items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        parts += [f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), raw]
    return b"\n".join(parts)


METHOD: Sequence[Check] = (
    *EVERY,
    honours_shapes_and_budget,
    same_seed_same_bytes,
    another_seed_other_bytes,
    leaves_global_state_alone,
    leaves_its_task_alone,
    leaves_running_statistics_alone,
    has_a_recipe_for_every_dataset,
    writes_only_in_its_folder,
    reports_progress,
    resumes_to_the_same_bytes,
    takes_colour_and_two_classes,
    does_better_than_chance,
    survives_its_file,
)
