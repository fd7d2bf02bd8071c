"""Matching gradients: DC (Zhao, Mopuri and Bilen 2021, arXiv 2006.05929) and DSA (Zhao and Bilen 2021, 2102.08259)."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, RecipeRequest, Run, State, Task, augment
from ddbench.augment import DSA
from ddbench.networks import Loss, cross_entropy, fit, gradient
from ddbench_matching import classwise
from ddbench_matching.classwise import Count, Images, Positive

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Updates of the images with each network, and epochs of the network between them, by images per class."""
NETWORK_BATCH = 256
"""Synthetic images in a step of the network."""
STATISTICS = 16
"""Real images of each class that batch normalisation takes its statistics from."""


def gradient_distance(synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Return the distance of two gradients `{name: shape}` (Zhao et al. 2021, equations 9 and 10).

        d(A, B) = sum over the rows i of each parameter of  1 - <A_i, B_i> / (|A_i| |B_i| + 1e-6)

    A row holds the weights into one output unit or channel. Parameters of one axis (biases, scale and shift of
    normalisation) do not count, as in the authors' code.
    """
    rows = [(synthetic[name].flatten(1), b.flatten(1)) for name, b in real.items() if b.dim() > 1]
    cosines = [(a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6) for a, b in rows]
    return (1 - torch.cat(cosines)).sum()


def matching_loss(
    network: nn.Module,
    state: State,
    real: tuple[Images, Int[Tensor, " real"]],
    synthetic: tuple[Images, Int[Tensor, " synthetic"]],
    loss: Loss = cross_entropy,
) -> Float[Tensor, ""]:
    """Return d(gradient on the synthetic images, gradient on the real ones), differentiable in the synthetic images.

    Both are gradients of the mean loss by the weights in `state`; batch normalisation uses the statistics in `state`.
    """
    target = gradient(network, state, *real, loss, batch_statistics=False)
    current = gradient(network, state, *synthetic, loss, create_graph=True, batch_statistics=False)
    return gradient_distance(current, target)


def match_gradients(
    task: Task,
    run: Run,
    *,
    networks: int,
    updates: int,
    inner_epochs: int,
    real_batch: int,
    image_rate: float,
    network_rate: float,
    start: str,
    strategy: str = "",
) -> DistilledSet:
    """Learn images on which networks have the gradients that they have on real ones (Algorithm 1 of both papers).

    With each of `networks` random networks, the images take `updates` steps of SGD along the gradient of

        sum over classes c of  d(grad L(synthetic images of c), grad L(real batch of c)).

    Between these steps the network trains on the images for `inner_epochs`. With a `strategy`, both batches of a class
    are seen under one draw of augmentation; where the network trains, each image has amounts of its own.
    """
    classwise.check(task, strategy)
    module, loss = task.networks.module, task.objective.inner_loss
    images = classwise.initial_images(task, start, run.generator)
    classes = torch.arange(len(images), device=run.device)
    labels = task.objective.relabel(classes)[:, None].expand(images.shape[:2])
    optimizer = torch.optim.SGD([images], lr=image_rate, momentum=0.5)
    student = classwise.copy_state(task.networks.sample(1).network(0))

    state = dict(images=images, optimizer=optimizer, **student.params, **student.buffers)
    for step in run.loop(networks * updates, state):
        if step % updates == 0:
            classwise.overwrite(student, task.networks.sample(1).network(0))
        else:
            batches = _epochs(images.flatten(0, 1), labels.flatten(), inner_epochs, strategy, run.generator)
            classwise.overwrite(
                student, fit(module, student, batches, lambda p: torch.optim.SGD(p, network_rate), loss=loss)
            )
        current = with_statistics(task, student, run.generator)
        distances, grads = [], []
        for label, (synthetic, synthetic_labels) in enumerate(zip(images, labels, strict=True)):
            real = task.train.minibatch(real_batch, run.generator, label)
            params = augment.draw(strategy, run.generator) if strategy else None
            synthetic = synthetic.detach().requires_grad_()
            distance = matching_loss(
                module,
                current,
                (classwise.view(real.inputs, params), task.objective.relabel(real.labels)),
                (classwise.view(synthetic, params), synthetic_labels),
                loss,
            )
            grads += torch.autograd.grad(distance, synthetic)
            distances.append(distance.detach())
        images.grad = torch.stack(grads)
        optimizer.step()
        run.log(loss=torch.stack(distances).sum())
    return classwise.distilled(task, images)


def _epochs(
    images: Images, labels: Int[Tensor, " n"], epochs: int, strategy: str, generator: torch.Generator
) -> Iterator[tuple[Images, Int[Tensor, " b"]]]:
    """Yield the batches of shuffled passes through the images, augmented image by image where there is a strategy."""
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for batch in torch.split(order, NETWORK_BATCH):
            params = augment.draw(strategy, generator, len(batch)) if strategy else None
            yield classwise.view(images[batch], params), labels[batch]


def with_statistics(task: Task, student: State, generator: torch.Generator) -> State:
    """Return the network with running statistics that have seen a batch of real images of all classes.

    A batch of one class has other statistics than those that a network trains with (the authors' code). A network
    without batch normalisation is returned as it is.
    """
    if not student.buffers:
        return student
    classes = range(len(task.info.classes))
    batches = [task.train.minibatch(STATISTICS, generator, label) for label in classes]
    mixed = torch.cat([batch.inputs for batch in batches]), torch.cat([batch.labels for batch in batches])
    return fit(task.networks.module, student, [mixed], lambda parameters: torch.optim.SGD(parameters, lr=0.0))


Networks = Annotated[Count, Field(description="random networks, one after the other")]
Updates = Annotated[Count, Field(description="updates of the images with each network")]
InnerEpochs = Annotated[Count, Field(description="epochs of a network on the images between two updates")]
RealBatch = Annotated[Count, Field(description="real images of each class in an update")]
ImageRate = Annotated[Positive, Field(description="rate of SGD, momentum 0.5, on the images")]
NetworkRate = Annotated[Positive, Field(description="rate of SGD on the networks")]
Start = Annotated[Literal["noise", "real"], Field(description="images start as normal noise or as real images")]


def published_loops(request: RecipeRequest) -> dict[str, object]:
    """Zhao et al. 2021, settings of the authors' code by images per class."""
    images = request.budget.images_per_class
    if images not in LOOPS:
        return {}
    updates, inner_epochs = LOOPS[images]
    return {"updates": updates, "inner_epochs": inner_epochs}


def published_views(request: RecipeRequest) -> dict[str, object]:
    """Zhao and Bilen 2021, settings of the authors' code by dataset and images per class."""
    return {**published_loops(request), "augmentation": classwise.strategy_for(request)}


@ddbench.method(recipe=published_loops)
def dc(
    task: Task,
    run: Run,
    *,
    networks: Networks = 1000,
    updates: Updates = 10,
    inner_epochs: InnerEpochs = 50,
    real_batch: RealBatch = 256,
    image_rate: ImageRate = 0.1,
    network_rate: NetworkRate = 0.01,
    start: Start = "noise",
) -> DistilledSet:
    """Match the gradients of networks on images and on real data, class by class (DC, Zhao et al. 2021).

    See `match_gradients` for the algorithm and `gradient_distance` for the distance.
    At one image per class, networks never train: each is used once. A small setting, which took 4 minutes with its
    scoring on one core at one image per class of CIFAR-10 and width 32: `--set networks=100 --set real_batch=64`.
    """
    return match_gradients(
        task,
        run,
        networks=networks,
        updates=updates,
        inner_epochs=inner_epochs,
        real_batch=real_batch,
        image_rate=image_rate,
        network_rate=network_rate,
        start=start,
    )


@ddbench.method(recipe=published_views)
def dsa(
    task: Task,
    run: Run,
    *,
    networks: Networks = 1000,
    updates: Updates = 10,
    inner_epochs: InnerEpochs = 50,
    real_batch: RealBatch = 256,
    image_rate: ImageRate = 0.1,
    network_rate: NetworkRate = 0.01,
    start: Start = "real",
    augmentation: Annotated[str, Field(description="operations to draw one of, joined by underscores")] = DSA,
) -> DistilledSet:
    """Match gradients as dc does, on images and real data under one draw of augmentation (DSA, Zhao and Bilen 2021).

    Sets are scored with the same augmentation: `--protocol train-dsa/v1`. A small setting is that of `dc`.
    """
    return match_gradients(
        task,
        run,
        networks=networks,
        updates=updates,
        inner_epochs=inner_epochs,
        real_batch=real_batch,
        image_rate=image_rate,
        network_rate=network_rate,
        start=start,
        strategy=augmentation,
    )
