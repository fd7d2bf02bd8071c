"""A method that matches trajectories, as small as it can be: what an author writes with `task.experts`."""

from typing import Annotated

import torch
from pydantic import Field
from torch.func import functional_call
from torch.nn import functional as F

import ddbench.networks
from ddbench import DistilledSet, Run, Task

Count = Annotated[int, Field(description="experts to match")]
SPAN, STEPS, LR = 2, 4, 0.05


def trajectories(task: Task, *, experts: int):
    return task.experts(experts, epochs=6, lr=LR, batch=128)


def match(task: Task, run: Run, experts: int) -> DistilledSet:
    """Move images so that a few steps on them lead from an epoch of an expert towards a later one."""
    trained = trajectories(task, experts=experts)
    images, labels = task.train.random_subset(task.budget.images_per_class, run.generator).in_steps(1)
    images = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=10.0, momentum=0.5)
    for _ in run.loop(10, {"images": images, "optimizer": optimizer}):
        expert = int(torch.randint(len(trained), (), generator=run.generator))
        epoch = int(torch.randint(trained.epochs - SPAN + 1, (), generator=run.generator))
        start, target = trained.start(expert, epoch), trained.start(expert, epoch + SPAN).params
        params = {name: tensor.requires_grad_() for name, tensor in start.params.items()}
        for _ in range(STEPS):
            logits = functional_call(task.networks.module, (params, start.buffers), (images[0],))
            grads = torch.autograd.grad(F.cross_entropy(logits, labels[0]), list(params.values()), create_graph=True)
            params = {n: p - LR * g for (n, p), g in zip(params.items(), grads, strict=True)}
        far = sum((start.params[name] - target[name]).square().sum() for name in params).detach()
        loss = sum((params[name] - target[name]).square().sum() for name in params) / far
        optimizer.zero_grad()
        loss.backward(inputs=[images])
        optimizer.step()
        run.log(loss=loss)
    return DistilledSet(images.detach(), labels)


@ddbench.method(needs=trajectories)
def small_mtt(task: Task, run: Run, *, experts: Count = 3) -> DistilledSet:
    """Match the trajectories of experts in a few steps."""
    return match(task, run, experts)


@ddbench.method
def hasty_mtt(task: Task, run: Run, *, experts: Count = 3) -> DistilledSet:
    """Match the trajectories of experts that are trained within the time of the run."""
    return match(task, run, experts)


@ddbench.method(needs=lambda task, **options: task.teachers(2, steps=60, lr=0.01))
def confident(task: Task, run: Run) -> DistilledSet:
    """Choose the images of each class that two teachers are surest of."""
    teachers = task.teachers(2, steps=60, lr=0.01)
    logits = sum(ddbench.networks.forward(teachers.module, teacher, task.train.inputs) for teacher in teachers)
    sure = logits.softmax(1).gather(1, task.train.labels[:, None])[:, 0]
    chosen = []
    for label in range(len(task.info.classes)):
        members = task.train.of_class(label)
        chosen.append(members[sure[members].topk(task.budget.images_per_class).indices])
    return DistilledSet(task.train.inputs[torch.cat(chosen)][None], task.train.labels[torch.cat(chosen)][None])


@ddbench.hookimpl
def ddbench_methods():
    return [small_mtt, hasty_mtt, confident]
