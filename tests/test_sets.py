"""Distilled sets beyond images and labels: kinds of labels, weights, one rate, payloads, extras, budgets in bytes."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_data import INFO, changed, toy_set, toy_task
from torch import nn
from torch.nn import functional as F

from ddbench.contract.journal import digest
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Budget, CrossEntropy
from ddbench.discovery.decoders import Decoders
from ddbench.engine.example_weights import WeightedLoss, weigh, weighted_loss
from ddbench.errors import PluginError, UsageError
from ddbench.machine.files import sha256
from ddbench.protocols import get_protocol
from ddbench.protocols.base import training_targets

LOGITS = torch.tensor([[3.0, -1.0], [0.0, 2.0], [-5.0, 1.0], [2.0, 2.0]]).expand(2, 4, 2).contiguous()


def full_set() -> DistilledSet:
    """A set with every field that a set can have beside a payload."""
    return replace(
        toy_set(),
        labels=LOGITS,
        label_kind="logits",
        weights=torch.rand((2, 4)),
        extras={"teacher": torch.rand(3, 8, 2).half(), "crops": torch.arange(6).view(3, 2)},
    )


def encoded_set(catalog) -> DistilledSet:
    return DistilledSet.encoded(
        "linear_bases/v1",
        {"bases": torch.rand(3, 1, 2, 2), "coefficients": torch.rand(8, 3)},
        torch.arange(8).view(2, 4) % 2,
        lrs=torch.tensor(0.1),
    )


def test_every_field_survives_its_file(tmp_path: Path, catalog):
    for distilled in (full_set(), encoded_set(catalog).described(sample_shape=[1, 2, 2])):
        path = tmp_path / "distilled.safetensors"
        written = distilled.save(path)
        loaded = DistilledSet.load(path)
        assert loaded.tensors.keys() == distilled.tensors.keys()
        for name, tensor in distilled.tensors.items():
            assert torch.equal(tensor, loaded.tensors[name]) and tensor.dtype == loaded.tensors[name].dtype
        for name in ("label_kind", "decoder", "decoder_options", "metadata"):
            assert getattr(loaded, name) == getattr(distilled, name)
        assert loaded.save(path) == written == sha256(path.read_bytes())
        assert loaded.nbytes == sum(tensor.nbytes for tensor in distilled.tensors.values())


def test_files_of_plain_sets_have_the_bytes_that_they_always_had(tmp_path: Path):
    """The header and the data written out by hand, as they were before sets held more."""
    distilled = DistilledSet(torch.ones(1, 2, 1), torch.tensor([[0, 1]]), torch.full((1, 1), 0.5), {"a": "b"})
    header = {
        "__metadata__": {"a": "b"},
        "inputs": {"data_offsets": [16, 24], "dtype": "F32", "shape": [1, 2, 1]},
        "labels": {"data_offsets": [0, 16], "dtype": "I64", "shape": [1, 2]},
        "lrs": {"data_offsets": [24, 28], "dtype": "F32", "shape": [1, 1]},
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<qq2ff", 0, 1, 1.0, 1.0, 0.5)
    assert distilled.save(tmp_path / "x.safetensors") == sha256(struct.pack("<Q", len(text)) + text + data)


def test_journals_know_plain_sets_as_before_and_others_apart():
    plain = DistilledSet(torch.ones(1, 2, 1), torch.tensor([[0, 1]]))
    parts = [b"inputs float32 (1, 2, 1)", plain.inputs.numpy().tobytes(), b"labels int64 (1, 2)", plain.labels.numpy().tobytes()]  # fmt: skip
    assert digest([plain]) == sha256(b"\n".join(parts))[:16]
    others = [full_set(), replace(full_set(), label_kind="regression"), replace(full_set(), weights=None), replace(full_set(), extras={})]  # fmt: skip
    assert len({digest([other]) for other in others}) == 4


def test_targets_are_what_the_kind_of_labels_says():
    assert toy_set().kind == "class" and toy_set(soft=True).kind == "distribution"
    assert torch.equal(toy_set().targets(), toy_set().labels)
    soft = replace(toy_set(), labels=LOGITS, label_kind="logits")
    assert torch.equal(soft.targets(), LOGITS.softmax(-1))
    assert torch.equal(replace(soft, label_kind="regression").targets(), LOGITS)
    for kind in ("logits", "regression"):
        replace(soft, label_kind=kind).validate(toy_task())


def test_a_view_of_one_tensor_can_be_saved(tmp_path: Path):
    both = torch.rand(2, 8, 2)
    replace(toy_set(), extras={"first": both[0], "second": both[1]}).save(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(label_kind="ranks"), "labels of the unknown kind 'ranks', which is not one of class, distribution, logits, regression"),
        (dict(label_kind="logits"), "labels of the kind 'logits' with the type torch.int64"),
        (dict(labels=LOGITS), "others need label_kind='logits' or 'regression'"),
        (dict(labels=LOGITS, label_kind="distribution"), "soft labels that are not distributions"),
        (dict(labels=LOGITS.softmax(-1), label_kind="class"), "labels of the kind 'class' with the type torch.float32"),
        (dict(labels=LOGITS.double(), label_kind="logits"), "labels of type torch.float64 instead of torch.float32"),
        (dict(weights=[1, 2]), "weights of type list instead of a tensor"),
        (dict(weights=torch.ones(4, 2)), "weights of shape [4, 2] where [2, 4] is expected"),
        (dict(weights=torch.ones(2, 4).double()), "weights of type torch.float64"),
        (dict(weights=torch.full((2, 4), torch.nan)), "weights with NaN or infinite values"),
        (dict(weights=torch.tensor([[1.0, 1, 1, -2]] * 2)), "a negative weight, -2"),
        (dict(weights=torch.zeros(2, 4)), "weights that are all zero"),
        (dict(weights=torch.full((2, 4), 1e38)), "weights whose sum is not finite"),
        (dict(extras=[torch.ones(1)]), "extras of type list instead of tensors by name"),
        (dict(extras={"teacher": [1.0]}), "extras 'teacher' of type list instead of a tensor"),
        (dict(extras={"teacher": torch.full((2,), torch.inf)}), "extras 'teacher' with NaN"),
        (dict(extras={"teacher": torch.ones(2, dtype=torch.complex64)}), "which a file does not hold"),
        (dict(extras={"": torch.ones(2)}), "extras with the name ''"),
        (dict(payload={"images": torch.ones(2)}), "a payload without a decoder"),
        (dict(decoder="tiles/v1"), "a decoder without a payload"),
        (dict(decoder="tiles/v1", payload={"images": torch.ones(2)}), "both inputs and a payload"),
        (dict(decoder_options={"size": torch.ones(2)}), "decoder_options that are not plain values"),
        (dict(lrs=torch.tensor(torch.nan)), "lrs with NaN"),
        (dict(lrs=torch.ones(3)), "lrs of shape [3] where [epochs, 2] or [] is expected"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_shape_checks")
def test_sets_that_are_refused(change, message):
    with pytest.raises(PluginError) as error:
        changed(toy_set(), **change).validate(toy_task())
    assert message in error.value.message


def test_encoded_sets_are_checked_after_decoding(catalog):
    task = replace(toy_task(5), decode=Decoders(catalog, INFO))
    distilled = encoded_set(catalog)
    distilled.validate(task)
    with pytest.raises(UsageError, match="makes 8 inputs of the payload, which has 6 labels"):
        replace(distilled, labels=distilled.labels[:, :3], inputs=torch.empty(2, 3, 0)).validate(task)
    big = {name: tensor * 1e38 for name, tensor in distilled.payload.items()}
    with pytest.raises(PluginError, match="inputs with NaN or infinite values"):
        replace(distilled, payload=big).validate(task)
    # 3 bases of 4 values and 24 coefficients fill 9 images of 4 values.
    small = replace(task, budget=Budget(4, 2, 3))
    assert distilled.stored_examples(INFO.sample_shape) == 9
    with pytest.raises(PluginError, match="a payload of the size of 9 images where the budget is 4 for each of 2"):
        distilled.validate(small)


def test_a_budget_in_bytes_counts_everything_that_is_stored(catalog):
    task = replace(toy_task(), budget=Budget(4, 2, 3, bytes=full_set().nbytes))
    full_set().validate(task)
    more = replace(full_set(), extras={**full_set().extras, "more": torch.zeros(1, dtype=torch.uint8)})
    wanted = f"{full_set().nbytes + 1} bytes where the budget is {full_set().nbytes} bytes"
    with pytest.raises(PluginError, match=wanted):
        more.validate(task)


def test_extras_have_a_limit_of_their_own(monkeypatch):
    monkeypatch.setattr("ddbench.contract.set_checks.EXTRAS_LIMIT", 10)
    with pytest.raises(PluginError, match="extras of 144 bytes where at most 10 are kept"):
        full_set().validate(toy_task())


def weighted_problem():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((6, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, generator=generator, dtype=torch.float64)
    soft = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    return logits, weights, torch.tensor([0, 3, 1, 1, 2, 0]), soft


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.usefixtures("without_shape_checks")
def test_scaled_targets_and_losses_of_each_example_agree(soft):
    """The two ways of weighting cross-entropy: value and gradient, and those of a sum written out."""
    logits, weights, hard, labels = weighted_problem()
    labels = labels if soft else hard
    own = CrossEntropy()
    values = [
        weighted_loss(own)(logits, weigh(own, labels, weights, 4).to(logits)),
        # A plain function is not recognised, so it takes the general way.
        weighted_loss(F.cross_entropy)(logits, weigh(F.cross_entropy, labels, weights, 4)),
        (weights * torch.stack([F.cross_entropy(z[None], y[None]) for z, y in zip(logits, labels, strict=True)])).mean(),
    ]  # fmt: skip
    assert isinstance(weighted_loss(F.cross_entropy), WeightedLoss) and weighted_loss(own) is own
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values]
    for value, gradient in zip(values, gradients, strict=True):
        torch.testing.assert_close(value, values[-1])
        torch.testing.assert_close(gradient, gradients[-1])


def scored(prepared, distilled: DistilledSet, protocol: str):
    return get_protocol(protocol).evaluate([distilled], prepared.setting, 2, Silent()).scores


def subset(prepared, steps: int = 1) -> DistilledSet:
    inputs, labels = prepared.train.random_subset(2, torch.Generator().manual_seed(0)).in_steps(steps)
    return DistilledSet(inputs, labels, torch.full((3, steps), 0.1))


@pytest.mark.parametrize("objective", ["classification", "least_squares"])
def test_a_weight_of_two_is_an_example_twice(make_prepared, objective):
    """Doubled examples in a set of 20, against the same set with the copies in it, step for step."""
    prepared = make_prepared(images_per_class=4, network="linear", objective=objective)
    plain = subset(prepared)
    weights = torch.ones(1, 20)
    weights[0, ::3] = 2
    copies = torch.cat([torch.arange(20), torch.arange(20)[::3]])
    twice = replace(plain, inputs=plain.inputs[:, copies], labels=plain.labels[:, copies])
    weighted = replace(plain, weights=5 * weights)
    one, other = (scored(prepared, d, "replay/v1")["loss"] for d in (weighted, twice))
    assert one == pytest.approx(other, rel=1e-4)
    assert one != pytest.approx(scored(prepared, plain, "replay/v1")["loss"], rel=1e-4)


@pytest.mark.parametrize("protocol", ["replay/v1", "train/v1", "knn/v1"])
def test_an_example_of_weight_zero_is_none(make_prepared, protocol, monkeypatch):
    prepared = make_prepared(images_per_class=2, network="linear")
    plain = subset(prepared)
    keep = torch.arange(20) % 2 == 0
    mixed = replace(plain, weights=keep.float()[None])
    if protocol == "knn/v1":
        # It takes a place among the neighbours, but casts no vote.
        from ddbench.protocols.knn import votes

        nearest = torch.tensor([[0, 1, 2], [1, 3, 2]])
        cast = votes(torch.tensor([0, 1, 1, 1]), nearest, 2, torch.tensor([1.0, 0.0, 0.0, 0.0]))
        assert cast.argmax(1).tolist() == [0, 1] and cast[1].exp().tolist() == pytest.approx([1 / 5, 1 / 5], abs=1e-3)
        assert scored(prepared, mixed, protocol) != scored(prepared, plain, protocol)
        return
    few = replace(plain, inputs=plain.inputs[:, keep], labels=plain.labels[:, keep])
    one, other = (scored(prepared, d, protocol)["loss"] for d in (mixed, few))
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("protocol", ["replay/v1", "train/v1"])
def test_equal_weights_and_logits_of_a_distribution_change_nothing(make_prepared, protocol):
    prepared = make_prepared(images_per_class=2, network="linear")
    plain = subset(prepared)
    soft = replace(plain, labels=F.one_hot(plain.labels, 10).float() * 0.5 + 0.05)
    wanted = scored(prepared, soft, protocol)["loss"]
    assert scored(prepared, replace(soft, weights=torch.full((1, 20), 3.0)), protocol)["loss"] == pytest.approx(wanted, rel=1e-4)  # fmt: skip
    logits = replace(soft, labels=soft.labels.log() + 7, label_kind="logits")
    assert scored(prepared, logits, protocol)["loss"] == pytest.approx(wanted, rel=1e-4)


def test_numbers_of_a_regression_are_used_as_they_are(make_prepared):
    """Unnormalised labels (Sucholutsky and Schonlau 2021): -sum_c y_c log p_c, by the engine and written out."""
    prepared = make_prepared(images_per_class=2, network="linear")
    plain = replace(subset(prepared), lrs=torch.full((1, 1), 0.1))
    labels = torch.randn((1, 20, 10), generator=torch.Generator().manual_seed(1))
    distilled = replace(plain, labels=labels, label_kind="regression")
    distilled.validate(prepared.task(torch.Generator()))
    targets, loss = training_targets(distilled, prepared.setting)
    network = nn.Linear(64, 10)
    logits = network(distilled.inputs[0].flatten(1))
    wanted = -(labels[0] * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss(logits, targets[0]), wanted)
    scores = scored(prepared, distilled, "replay/v1")
    assert scores["loss"] != scored(prepared, plain, "replay/v1")["loss"]


def test_one_rate_is_the_rate_of_every_step(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=2, epochs=3, network="linear")
    plain = subset(prepared, 2)
    one = replace(plain, lrs=torch.tensor(0.1))
    one.validate(prepared.task(torch.Generator()))
    assert scored(prepared, one, "replay/v1") == scored(prepared, replace(plain, lrs=torch.full((3, 2), 0.1)), "replay/v1")  # fmt: skip
    with pytest.raises(PluginError, match="4 batches with one rate, which 6 steps cannot cycle through"):
        changed(toy_set(4, 2, epochs=None), lrs=torch.tensor(0.1)).validate(toy_task())


def test_a_loader_gets_targets_and_weights():
    weights = torch.tensor([[1.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    distilled = replace(toy_set(), labels=LOGITS, label_kind="logits", weights=weights)
    [(images, targets, shares)] = torch.utils.data.DataLoader(distilled.dataset(), batch_size=8)
    assert torch.equal(targets, LOGITS.softmax(-1).flatten(0, 1)) and len(images) == 8
    assert float(shares.mean()) == 1.0 and float(shares[1]) == 3.0


HEAD = '''
import torch
import ddbench
from dataclasses import replace
from ddbench import DistilledSet

@ddbench.method
def mine(task, run):
    """Return real images with a field of its own."""
    inputs, labels = task.train.random_subset(1, run.generator).in_steps(1)
    plain = DistilledSet(inputs, labels)
    return BODY

@ddbench.hookimpl
def ddbench_methods():
    return [mine]
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("replace(plain, weights=-torch.ones(1, 10))", [], "the method returned a negative weight, -1."),
        ("replace(plain, label_kind='ranks')", [], "the method returned labels of the unknown kind 'ranks'"),
        ("replace(plain, extras={'a': 1})", [], "the method returned extras 'a' of type int instead of a tensor."),
        ("plain", ["--byte-budget", 100], "the method returned 2640 bytes where the budget is 100 bytes."),
    ],
)
def test_a_method_that_returns_such_a_set_fails_in_one_sentence(ddbench, tmp_path, body, options, message):
    (tmp_path / "mine.py").write_text(HEAD.replace("BODY", body))
    done = ddbench("run", "--plugin", "mine.py", "--method", "mine", *options)
    assert done.code == 4 and message in done.message() and "Traceback" not in done.err


@pytest.mark.slow
def test_files_that_are_refused_in_one_sentence(ddbench, tmp_path):
    (tmp_path / "mine.py").write_text(HEAD.replace("BODY", "replace(plain, weights=torch.arange(10.0)[None])"))
    run = ["run", "--plugin", "mine.py", "--method", "mine", "--eval-networks", 1, "--protocol", "knn/v1", "--json"]
    done = ddbench(*run, "--byte-budget", 3000)
    assert done.code == 0, done.err
    assert done.json()["settings"]["byte_budget"] == 3000
    good = DistilledSet.load(tmp_path / done.json()["artifact"]["path"])
    tiles = {"payload": {"images": torch.zeros(1, 1, 8, 8)}, "inputs": torch.empty(1, 10, 0), "decoder": "tiles/v1"}
    cases = {
        "weights with NaN": replace(good, weights=torch.full((1, 10), torch.nan)),
        "labels of the unknown kind 'ranks'": changed(good, label_kind="ranks"),
        "4 inputs of the payload, which has 10 labels": replace(good, **tiles),
        "extras 'teacher' with NaN": replace(good, extras={"teacher": torch.full((2,), torch.nan)}),
        "has no option 'size'": replace(good, **tiles, decoder_options={"size": 3}),
        "where the budget is 3000 bytes": replace(good, extras={"teacher": torch.zeros(500)}),
    }
    for message, distilled in cases.items():
        distilled.save(tmp_path / "bad.safetensors")
        refused = ddbench("evaluate", "bad.safetensors")
        assert refused.code == 2, (message, refused.err)
        assert message in refused.message() and "Traceback" not in refused.err
    raw = (tmp_path / "bad.safetensors").read_bytes()
    for content in (raw[:-7], raw.replace(b'"inputs"', b'"outputs"', 1), raw.replace(b'"weights"', b'"weighty"', 1)):
        (tmp_path / "bad.safetensors").write_bytes(content)
        refused = ddbench("evaluate", "bad.safetensors")
        assert refused.code == 2 and "Traceback" not in refused.err, refused.err
