import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddbench.contract.metric import Metric
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Objective
from ddbench.errors import DdbenchError, UsageError
from ddbench.networks import State, measure
from ddbench.protocols import get_protocol
from ddbench.protocols.base import better
from ddbench.protocols.replay import RATES

REPLAY = get_protocol("replay/v1")


class Watching:
    """A test split that counts how often it is read."""

    def __init__(self, examples) -> None:
        self._examples, self.reads = examples, 0

    def __getattr__(self, name: str):
        if name == "inputs":
            self.reads += 1
        return getattr(self._examples, name)

    def __len__(self) -> int:
        return len(self._examples)


def learned(prepared, lr: float = 0.1) -> DistilledSet:
    chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
    inputs, labels = chosen.inputs.view(10, 2, *chosen.inputs.shape[1:]), chosen.labels.view(10, 2)
    return DistilledSet(inputs.transpose(0, 1), labels.T, torch.full((3, 2), lr))


def test_replays_the_sets_own_steps_and_rates(make_prepared):
    """Against the training written out with torch.optim on one network at a time."""
    prepared = make_prepared(images_per_class=2, steps=2)
    distilled = learned(prepared)
    evaluation = REPLAY.evaluate([distilled], prepared.setting, 3, Silent())

    from ddbench.machine.seeds import derive_seed

    generator = torch.Generator().manual_seed(derive_seed("replay/v1", "evaluation"))
    network = prepared.setting.module
    accuracies, before = [], []
    for _ in range(3):
        nn.init.xavier_normal_(network.classifier.weight.data, generator=generator)
        nn.init.zeros_(network.classifier.bias.data)
        before.append(
            float((network(prepared.setting.test.inputs).argmax(1) == prepared.setting.test.labels).float().mean())
        )
        for _ in range(3):
            for step in range(2):
                network.zero_grad()
                F.cross_entropy(network(distilled.inputs[step]), distilled.labels[step]).backward()
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter -= 0.1 * parameter.grad
        accuracies.append(
            float((network(prepared.setting.test.inputs).argmax(1) == prepared.setting.test.labels).float().mean())
        )
    assert evaluation.scores["accuracy"] == pytest.approx(accuracies, abs=0.006)
    assert evaluation.before["accuracy"] == pytest.approx(before, abs=0.006)
    assert evaluation.selected == "nothing"


def test_every_method_meets_the_same_networks_and_seeds_do_not_move_them(make_prepared):
    one, other = (REPLAY.evaluate([learned(b)], b.setting, 4, Silent()) for b in (make_prepared(seed=0, images_per_class=2, steps=2), make_prepared(seed=7, images_per_class=2, steps=2)))  # fmt: skip
    assert one.before == other.before
    assert one.scores == other.scores
    assert len(set(one.before["accuracy"])) > 1


def test_sets_without_rates_get_the_best_fixed_rate_of_the_validation_slice(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=2)
    chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
    plain = DistilledSet(chosen.inputs[None], chosen.labels[None])
    evaluation = REPLAY.evaluate([plain], prepared.setting, 3, Silent())
    rate = float(evaluation.selected.split()[1])
    assert rate in RATES
    assert evaluation.selected.endswith(f"on {len(prepared.setting.validation)} validation images")
    # The rate makes the set equal to one with that rate for all epochs * steps gradient steps.
    same = dataclasses.replace(plain, lrs=torch.full((6, 1), rate))
    assert REPLAY.evaluate([same], prepared.setting, 3, Silent()).scores == evaluation.scores


def test_the_test_split_is_read_only_to_score(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=2)
    chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
    watching = Watching(prepared.setting.test)
    setting = dataclasses.replace(prepared.setting, test=watching)
    reads = []

    class Reporter(Silent):
        def progress(self, done, total, values, seconds_left):
            reads.append(("rate" in values, watching.reads))

    REPLAY.evaluate([DistilledSet(chosen.inputs[None], chosen.labels[None])], setting, 2, Reporter())
    assert [r for selecting, r in reads if selecting] == [0] * 5 * len(RATES)
    # Once before and once after training, for each of two networks.
    assert watching.reads == 4


def test_a_fixed_init_is_the_same_network_and_counts_once(make_prepared):
    prepared = make_prepared(init="fixed", images_per_class=2, steps=2)
    evaluation = REPLAY.evaluate([learned(prepared)], prepared.setting, 20, Silent())
    assert len(evaluation.scores["accuracy"]) == 1
    drawn = prepared.task(torch.Generator()).networks.sample(4)
    [evaluated] = (prepared.setting.networks("evaluation", torch.Generator().manual_seed(5)).sample(1),)
    for name, tensor in drawn.params.items():
        assert torch.equal(tensor, evaluated.params[name])
    several = REPLAY.evaluate([learned(prepared), learned(prepared, 0.01)], prepared.setting, 20, Silent())
    assert several.scores["accuracy"][0] == evaluation.scores["accuracy"][0]
    assert len(several.scores["accuracy"]) == 2


def test_a_diverging_set_still_has_an_accuracy_but_no_loss(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=2, network="mlp")
    evaluation = REPLAY.evaluate([learned(prepared, 1e30)], prepared.setting, 2, Silent())
    assert set(evaluation.scores) == {"accuracy"}
    objective = dataclasses.replace(prepared.setting.objective, metrics=prepared.setting.objective.metrics[::-1])
    assert objective.primary == "loss"
    with pytest.raises(DdbenchError, match="loss is not finite"):
        REPLAY.evaluate(
            [learned(prepared, 1e30)], dataclasses.replace(prepared.setting, objective=objective), 2, Silent()
        )


def test_measuring_in_batches_is_measuring_at_once(make_prepared, monkeypatch):
    prepared = make_prepared()
    state = prepared.setting.networks("train", torch.Generator()).sample(1).network(0)
    whole = measure(prepared.setting.module, state, prepared.setting.test, prepared.setting.objective)
    monkeypatch.setattr("ddbench.engine.networks.BATCH", 7)
    assert measure(prepared.setting.module, state, prepared.setting.test, prepared.setting.objective) == pytest.approx(
        whole
    )


def test_better_follows_the_objective():
    up = Objective(None, lambda logits, labels: {}, (Metric("accuracy", "share"),))
    down = dataclasses.replace(up, metrics=(dataclasses.replace(up.metric, higher_is_better=False),))
    assert better(up, 0.9, 0.8)
    assert not better(down, 0.9, 0.8)
    assert better(up, 0.1, float("nan"))
    assert not better(up, float("nan"), 0.1)


def test_unknown_protocols():
    with pytest.raises(UsageError, match="Did you mean 'replay/v1'"):
        get_protocol("replay/v2")


KNN = get_protocol("knn/v1")


def test_nearest_neighbours(make_prepared):
    """Against scikit-learn for one neighbour; votes of three by hand, ties going to the nearest."""
    from sklearn.neighbors import KNeighborsClassifier

    from ddbench.protocols.knn import classes_of, neighbours, votes

    def voted(distilled, inputs, norm, k, classes):
        return votes(classes_of(distilled), neighbours(distilled, inputs, norm, k), classes)

    prepared = make_prepared(images_per_class=2)
    distilled = DistilledSet(*(t[None] for t in learned(prepared).flat()))
    images, labels = distilled.flat()
    test = prepared.setting.test
    for norm in (1, 2):
        reference = KNeighborsClassifier(1, p=norm).fit(images.flatten(1).numpy(), labels.numpy())
        actual = voted(distilled, test.inputs, norm, 1, 10)
        assert torch.equal(actual.argmax(1), torch.from_numpy(reference.predict(test.inputs.flatten(1).numpy())))
        torch.testing.assert_close(actual.exp().sum(1), torch.full((len(test),), 1.0), atol=2e-3, rtol=0)
    line = DistilledSet(torch.tensor([0.0, 1.0, 2.0, 4.0]).view(1, 4, 1, 1, 1), torch.tensor([[2, 1, 1, 0]]))
    places = torch.tensor([0.1, 3.9]).view(2, 1, 1, 1)
    assert voted(line, places, 2, 3, 3).argmax(1).tolist() == [1, 1]
    spread = DistilledSet(line.inputs, torch.tensor([[2, 1, 0, 0]]))
    assert voted(spread, places - 0.05, 1, 3, 3).argmax(1).tolist() == [2, 0]
    assert voted(spread, places[:1], 1, 3, 3)[0].exp().tolist() == pytest.approx([2 / 6, 2 / 6, 2 / 6], abs=1e-3)


def test_nearest_neighbours_are_chosen_on_validation_and_test_is_read_once_a_set(make_prepared):
    prepared = make_prepared(images_per_class=2)
    watching = Watching(prepared.setting.test)
    setting = dataclasses.replace(prepared.setting, test=watching)
    sets = [DistilledSet(*(t[None] for t in learned(prepared, lr).flat())) for lr in (0.1, 0.2)]
    evaluation = KNN.evaluate(sets, setting, 20, Silent())
    assert watching.reads == len(sets)
    assert len(evaluation.scores["accuracy"]) == 2
    assert evaluation.scores["accuracy"][0] > 0.6
    assert evaluation.before["accuracy"][0] == float((prepared.setting.test.labels == 0).float().mean())
    assert evaluation.selected in {f"l{n} and k={k} on 142 validation images" for n in (1, 2) for k in (1, 3)}


def with_batch_norm(prepared):
    """The prepared's setting with a network that keeps running statistics, from one fixed start."""
    from ddbench.contract.task import Networks

    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.Dropout(), nn.Linear(20, 10))

    def sample(request):
        return {name: p.detach()[None] for name, p in request.network.named_parameters()}

    def networks(side, generator):
        return Networks(module, sample, prepared.train.info, generator, side, None)

    return module, dataclasses.replace(prepared.setting, module=module, networks=networks)


def test_training_from_scratch(make_prepared):
    """Against torch.optim on the module itself: order, rate, momentum, decay, the drop at half, running
    statistics, and dropout off."""
    import copy

    from ddbench.machine.seeds import derive_seed
    from ddbench.protocols.train import TRAIN_V1

    prepared = make_prepared(images_per_class=2)
    module, setting = with_batch_norm(prepared)
    chosen = prepared.train.random_subset(30, torch.Generator().manual_seed(0))
    distilled = DistilledSet(chosen.inputs[None], chosen.labels[None], torch.full((1, 1), 9.0))
    protocol = dataclasses.replace(TRAIN_V1, epochs=6)
    evaluation = protocol.evaluate([distilled], setting, 5, Silent())

    reference = copy.deepcopy(module).train()
    reference[3].eval()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(derive_seed("train/v1", "order", 0))
    for epoch in range(6):
        if epoch == 3:
            optimizer.param_groups[0]["lr"] = 0.001
        order = torch.randperm(300, generator=generator)
        for batch in (order[:256], order[256:]):
            optimizer.zero_grad()
            F.cross_entropy(reference(chosen.inputs[batch]), chosen.labels[batch]).backward()
            optimizer.step()
    logits = reference.eval()(setting.test.inputs).detach()
    assert evaluation.scores["loss"] == pytest.approx([float(F.cross_entropy(logits, setting.test.labels))], rel=1e-4)
    assert evaluation.selected == "nothing"
    assert not module[2].running_mean.any()


def test_a_teacher_answers_with_its_running_statistics(make_prepared):
    """By them this teacher knows one class; by those of a batch it would tell images apart."""
    from ddbench.protocols.train import TRAIN_TEACHER_V1

    prepared = make_prepared(images_per_class=2)
    module, setting = with_batch_norm(prepared)
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    params["4.bias"][3] = 20.0
    buffers = {**dict(module.named_buffers()), "2.running_var": torch.full((20,), 1e12)}
    params["4.weight"] *= 100
    setting = dataclasses.replace(setting, full_data=lambda patience: [State(params, buffers)])
    chosen = prepared.train.random_subset(30, torch.Generator().manual_seed(0))
    distilled = DistilledSet(chosen.inputs[None], chosen.labels[None])
    evaluation = dataclasses.replace(TRAIN_TEACHER_V1, epochs=40).evaluate([distilled], setting, 1, Silent())
    share = float((setting.test.labels == 3).float().mean())
    assert evaluation.scores["accuracy"] == pytest.approx([share], abs=0.01)


def test_training_is_the_same_on_any_number_of_workers(make_prepared):
    from ddbench.protocols.train import TRAIN_DSA_V1

    prepared = make_prepared(images_per_class=2, network="lenet", dataset="digits", sample_shape=[3, 16, 16])
    distilled = learned(prepared)
    protocol = dataclasses.replace(TRAIN_DSA_V1, epochs=20)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(protocol.evaluate([distilled], prepared.setting, 3, Silent()))
    assert results[0] == results[1]
    assert len(set(results[0].scores["loss"])) == 3


@pytest.mark.slow
def test_students_learn_what_their_teachers_say_of_the_images(make_prepared):
    """One teacher sees classes rightly, the other each as the next; labels of the set itself are of no account."""
    from ddbench.protocols.train import TRAIN_TEACHER_V1

    prepared = make_prepared(images_per_class=10)
    right = prepared.setting.full_data(math.inf)[0]
    wrong = State({name: tensor.roll(1, 0) for name, tensor in right.params.items()})
    setting = dataclasses.replace(prepared.setting, full_data=lambda patience: [right, wrong])
    protocol = dataclasses.replace(TRAIN_TEACHER_V1, epochs=150)
    chosen = prepared.train.random_subset(10, torch.Generator().manual_seed(0))
    evaluation = protocol.evaluate([DistilledSet(chosen.inputs[None], chosen.labels[None])], setting, 3, Silent())
    first, second, third = evaluation.scores["accuracy"]
    assert first > 0.7 and third > 0.7 and second < 0.1
    shuffled = chosen.labels[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    again = protocol.evaluate([DistilledSet(chosen.inputs[None], shuffled[None])], setting, 3, Silent())
    assert again == evaluation


def test_the_time_is_told_first(make_prepared, monkeypatch):
    from ddbench.protocols import train

    monkeypatch.setattr(train, "ANNOUNCE_SECONDS", 0)
    prepared, lines = make_prepared(images_per_class=2, steps=2), []

    class Reporter(Silent):
        def say(self, message):
            lines.append(message)

        def progress(self, done, total, values, seconds_left):
            lines.append(done)

    dataclasses.replace(train.TRAIN_V1, epochs=5).evaluate([learned(prepared)], prepared.setting, 2, Reporter())
    assert lines[1:] == [1, 2]
    assert lines[0].startswith("Training 2 networks for 5 epochs each will take about 0 minutes")


def test_a_number_of_a_protocol_does_not_change_without_its_version():
    """Each protocol by the hash that rows carry: another hash under the same name would compare what does not."""
    from ddbench.protocols import PROTOCOLS, protocol_hash

    assert {name: protocol_hash(protocol) for name, protocol in PROTOCOLS.items()} == {
        "replay/v1": "98189d2bfea2",
        "replay-momentum/v1": "b5753d744399",
        "train/v1": "808b208e72a6",
        "train-dsa/v1": "2974ea0d411b",
        "train-dsa-rate/v1": "613eaf626226",
        "train-teacher/v1": "b9cb30b77ade",
        "train-imagenet/v1": "efdf83228363",
        "train-views/v1": "fc2ccc957656",
        "knn/v1": "002b431ea7bb",
        "krr/v1": "23f263282f6a",
    }


@pytest.mark.parametrize(
    "name", ["train/v1", "train-dsa/v1", pytest.param("train-teacher/v1", marks=pytest.mark.slow), "knn/v1"]
)
def test_fields_that_a_protocol_ignores_change_no_score(make_prepared, name: str):
    protocol = get_protocol(name)
    if hasattr(protocol, "epochs"):
        protocol = dataclasses.replace(protocol, epochs=2)
    flat = make_prepared(protocol=name, images_per_class=2, steps=1, epochs=1)
    stepped = make_prepared(protocol=name, images_per_class=2, steps=2, epochs=3)
    assert {"steps", "epochs"} <= protocol.ignores
    distilled = learned(stepped)
    images, labels = distilled.flat()
    whole = DistilledSet(images[None], labels[None])
    evaluations = [
        protocol.evaluate([distilled], stepped.setting, 2, Silent()),
        protocol.evaluate([whole], flat.setting, 2, Silent()),
    ]
    if {"eval_network", "eval_init"} <= protocol.ignores:
        elsewhere = make_prepared(protocol=name, images_per_class=2, steps=1, network="mlp").setting
        evaluations.append(protocol.evaluate([whole], elsewhere, 2, Silent()))
    first = evaluations[0]
    assert all((other.scores, other.before) == (first.scores, first.before) for other in evaluations)


def test_replay_ignores_nothing(make_prepared):
    """Each of the fields that other protocols ignore moves its score."""
    fields = {"images_per_class": 2, "steps": 1, "epochs": 1}

    def score(**changes: object) -> list[float]:
        prepared = make_prepared(**(fields | changes))
        chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
        return REPLAY.evaluate([DistilledSet(chosen.inputs[None], chosen.labels[None])], prepared.setting, 2, Silent()).scores["accuracy"]  # fmt: skip

    assert REPLAY.ignores == frozenset()
    assert len({tuple(score(**change)) for change in ({}, {"epochs": 20}, {"network": "mlp"})}) == 3


def test_a_set_is_replayed_by_its_own_momenta_and_decays(make_prepared):
    """Under replay/v1 they play no part; a momentum of zero is plain gradient descent."""
    prepared = make_prepared(images_per_class=2, steps=1, epochs=4)
    chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
    lrs = torch.full((4, 1), 0.05)

    def score(name: str, **extras: torch.Tensor) -> list[float]:
        distilled = DistilledSet(chosen.inputs[None], chosen.labels[None], lrs, extras=extras)
        return get_protocol(name).evaluate([distilled], prepared.setting, 2, Silent()).scores["loss"]

    plain, strong = score("replay-momentum/v1"), {"momentum": torch.full((4, 1), 0.9)}
    assert score("replay-momentum/v1", momentum=torch.zeros(4, 1)) == pytest.approx(plain, rel=1e-5)
    assert score("replay-momentum/v1", **strong) != pytest.approx(plain, rel=1e-2)
    assert score("replay-momentum/v1", decay=torch.full((4, 1), 0.5)) != pytest.approx(plain, rel=1e-2)
    assert score("replay/v1", **strong) == score("replay/v1")
    with pytest.raises(UsageError, match=r"extras 'momentum' of shape \[3\], not one number for each of its rates"):
        score("replay-momentum/v1", momentum=torch.zeros(3))
