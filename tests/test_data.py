import copy
import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddbench.contract.examples import DatasetInfo, ExampleSet, ImageSplits
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Budget, Objective, Task
from ddbench.errors import PluginError, UsageError
from ddbench.modalities.image import normalise

INFO = DatasetInfo("toy", ("a", "b"), (1, 2, 2), (0.5,), (0.25,), "image", "c0ffee" * 10, False)


def toy_task(images_per_class: int = 4, steps: int = 2, epochs: int = 3) -> Task:
    return Task(None, Objective(None, dict, ""), None, Budget(images_per_class, steps, epochs), INFO)  # type: ignore[arg-type]


def changed(thing, **fields: object):
    """A copy with other fields, as a plugin could build it where shapes are not checked at run time."""
    other = copy.copy(thing)
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    return other


def toy_set(steps: int = 2, n: int = 4, soft: bool = False, epochs: int | None = 3, seed: int = 0) -> DistilledSet:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((steps, n, 1, 2, 2), generator=generator)
    labels = (
        torch.randn((steps, n, 2), generator=generator).softmax(-1) if soft else torch.arange(n).repeat(steps, 1) % 2
    )
    lrs = None if epochs is None else torch.rand((epochs, steps), generator=generator)
    return DistilledSet(inputs, labels, lrs, {"classes": '["a", "b"]'})


@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.none() | st.integers(1, 3))
def test_saved_and_loaded_is_the_same(tmp_path_factory, steps, n, soft, epochs):
    path = tmp_path_factory.mktemp("sets") / "distilled.safetensors"
    saved = toy_set(steps, n, soft, epochs).described(mean=[0.5], note="ä")
    digest = saved.save(path)
    loaded = DistilledSet.load(path)
    for name in ("inputs", "labels", "lrs"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)
    assert loaded.metadata == {"classes": '["a", "b"]', "mean": "[0.5]", "note": "ä"}
    assert loaded.save(path) == digest
    assert loaded.nbytes == sum(t.nbytes for t in (saved.inputs, saved.labels, saved.lrs) if t is not None)


def test_flat_gives_plain_images_and_labels():
    distilled = toy_set()
    images, labels = distilled.flat()
    assert images.shape == (8, 1, 2, 2)
    assert torch.equal(images[5], distilled.inputs[1, 1])
    assert labels[5] == distilled.labels[1, 1]


def test_pixels_invert_the_normalisation_in_the_metadata():
    distilled = DistilledSet(
        torch.tensor([-1.0, 0.0, 1.0, 9.0]).view(2, 1, 2, 1, 1), torch.tensor([[0], [1]])
    ).described(mean=[0.5, 0.25], std=[0.5, 0.125])  # fmt: skip
    assert distilled.pixels().flatten(1).tolist() == [[0.0, 0.25], [1.0, 1.0]]


def test_a_dataset_for_any_loader():
    distilled = toy_set()
    loader = torch.utils.data.DataLoader(distilled.dataset(), batch_size=8)
    [(images, labels)] = list(loader)
    assert torch.equal(images, distilled.flat()[0]) and torch.equal(labels, distilled.flat()[1])


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04pickle"])
def test_files_that_are_no_distilled_set(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match="there is no file"):
        DistilledSet.load(path)
    path.write_bytes(content)
    with pytest.raises(UsageError, match="damaged or not a distilled set"):
        DistilledSet.load(path)
    toy_set().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsageError, match="damaged"):
        DistilledSet.load(path)


def test_sets_that_fit_the_task():
    for distilled in (toy_set(), toy_set(soft=True), toy_set(1, 8, epochs=None), toy_set(epochs=1)):
        distilled.validate(toy_task())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(inputs=torch.zeros(2, 4, 3, 2, 2)), "inputs of shape [2, 4, 3, 2, 2] where [steps, n, 1, 2, 2]"),
        (dict(inputs=torch.zeros(4, 1, 2, 2)), "where [steps, n, 1, 2, 2]"),
        (dict(inputs=torch.zeros(2, 4, 1, 2, 2, dtype=torch.float64)), "torch.float64 instead of torch.float32"),
        (dict(inputs=torch.full((2, 4, 1, 2, 2), torch.nan)), "inputs with NaN or infinite values"),
        (dict(inputs="images"), "inputs of type str"),
        (dict(labels=torch.zeros(2, 3, dtype=torch.int64)), "labels of shape [2, 3] where [2, 4]"),
        (dict(labels=torch.zeros(2, 4, dtype=torch.int32)), "labels of type torch.int32"),
        (dict(labels=torch.full((2, 4), 2)), "labels outside 0 .. 1"),
        (dict(labels=torch.full((2, 4), -1)), "labels outside 0 .. 1"),
        (dict(labels=torch.ones(2, 4, 2)), "soft labels that are not distributions"),
        (dict(labels=torch.tensor([1.5, -0.5]).expand(2, 4, 2)), "soft labels that are not distributions"),
        (dict(inputs=torch.zeros(4, 2, 1, 2, 2), labels=torch.zeros(4, 2, dtype=torch.int64), lrs=None), "4 batches without rates"),
        (dict(lrs=torch.ones(0, 2)), "0 gradient steps"),
        (dict(labels=torch.ones(2, 4, 3) / 3), "labels of shape [2, 4, 3] where [2, 4, 2]"),
        (dict(lrs=torch.ones(3, 4)), "lrs of shape [3, 4] where [epochs, 2]"),
        (dict(lrs=torch.ones(4, 2)), "8 gradient steps where the budget is 6"),
        (dict(lrs=torch.full((3, 2), torch.inf)), "lrs with NaN or infinite values"),
        (dict(inputs=torch.zeros(2, 5, 1, 2, 2), labels=torch.zeros(2, 5, dtype=torch.int64)), "10 images where the budget is 4"),
        (dict(inputs=torch.zeros(2, 0, 1, 2, 2), labels=torch.zeros(2, 0, dtype=torch.int64)), "0 images"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_shape_checks")
def test_sets_that_do_not(change, message):
    with pytest.raises(PluginError) as error:
        changed(toy_set(), **change).validate(toy_task())
    assert message in error.value.message


def splits(seed: int = 0, partial: bool = False) -> ImageSplits:
    generator = torch.Generator().manual_seed(seed)

    def images(n: int) -> torch.Tensor:
        return torch.randint(256, (n, 3, 4, 4), generator=generator).byte()

    return ImageSplits(images(20), torch.arange(20) % 2, images(6), torch.arange(6) % 2, partial)


def test_normalised_by_the_training_images():
    train, test = normalise("toy", splits(), ("a", "b"), "image")
    torch.testing.assert_close(train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.inputs.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.info.pixels(test.inputs) * 255, splits().test_images.float(), atol=1e-3, rtol=0)
    assert train.info.sample_shape == (3, 4, 4)


def test_a_partial_copy_is_named_by_its_content():
    train, _ = normalise("toy", splits(partial=True), ("a", "b"), "image")
    assert train.info.label == f"toy@{splits().content_hash()[:8]}"
    assert normalise("toy", splits(), ("a", "b"), "image")[0].info.label == "toy"
    assert splits(1).content_hash() != splits(0).content_hash() == splits(0).content_hash()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train_labels=torch.eye(2)[torch.arange(20) % 2]), "training labels of type torch.float32 and shape [20, 2]"),
        (dict(test_labels=torch.arange(6) % 2 + 0.3), "test labels of type torch.float32 and shape [6]"),
        (dict(train_labels=None), "training labels of type NoneType"),
        (dict(train_labels=torch.arange(6) % 2), "20 training images and 6 labels"),
        (dict(test_images=splits().test_images[:0], test_labels=torch.arange(0)), "0 test images and 0 labels"),
        (dict(train_labels=torch.arange(20) % 3), "training labels outside 0 .. 1"),
        (dict(test_labels=torch.arange(6) % 2 - 1), "test labels outside 0 .. 1"),
        (dict(train_images=splits().train_images.numpy()), "training images of type ndarray"),
        (dict(test_images=splits().test_images[:, 0]), "test images of type torch.uint8 and shape [6, 4, 4]"),
        (dict(train_images=torch.full((20, 3, 4, 4), torch.nan)), "training images of type torch.float32"),
        (dict(test_images=splits().test_images[:, :, :3]), "test images of shape [3, 3, 4] where [3, 4, 4] is expected"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_shape_checks")
def test_data_that_cannot_be_used(change, message):
    splits().validate("dataset 'toy'", 2)
    splits().validate("dataset 'toy'", 2, (3, 4, 4))
    with pytest.raises(PluginError) as error:
        changed(splits(), **change).validate("dataset 'toy'", 2)
    assert error.value.message.startswith(f"dataset 'toy' gives {message}") and error.value.hint
    with pytest.raises(PluginError, match=r"training images of shape \[3, 4, 4\] where \[3, 5, 4\]"):
        splits().validate("dataset 'toy'", 2, (3, 5, 4))


def test_an_empty_class_is_reported_as_empty():
    one = dataclasses.replace(splits(), train_labels=torch.zeros(20, dtype=torch.int64))
    train, _ = normalise("toy", one, ("a", "b"), "image")
    with pytest.raises(UsageError, match="class 'b' of toy is empty") as error:
        train.random_subset(1, torch.Generator())
    assert "--ipc" not in error.value.hint
    assert len(train.of_class(1)) == 0


def test_subsets_are_balanced_and_repeatable():
    train, _ = normalise("toy", splits(), ("a", "b"), "image")
    subset = train.random_subset(3, torch.Generator().manual_seed(1))
    assert subset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(subset.inputs, train.random_subset(3, torch.Generator().manual_seed(1)).inputs)
    assert not torch.equal(subset.inputs, train.random_subset(3, torch.Generator().manual_seed(2)).inputs)
    assert len(train.random_subset(3, torch.Generator(), balanced=False)) == 6
    assert len(train.minibatch(100, torch.Generator())) == 20
    with pytest.raises(UsageError, match="class 'a' of toy has 10 training images, fewer than 11"):
        train.random_subset(11, torch.Generator())


def test_minibatches_of_a_class():
    train = examples(20, 3)
    train = dataclasses.replace(train, labels=torch.tensor([1, 0, 1, 1] * 5))
    assert train.of_class(0).tolist() == [1, 5, 9, 13, 17]
    train.of_class(0).zero_()
    batch = train.minibatch(3, torch.Generator().manual_seed(0), label=0)
    assert batch.labels.tolist() == [0, 0, 0] and len(batch.inputs.unique(dim=0)) == 3
    assert all((row == train.inputs[1::4]).all(1).any() for row in batch.inputs)
    again = train.minibatch(3, torch.Generator().manual_seed(0), label=0)
    assert torch.equal(batch.inputs, again.inputs)
    assert len(train.minibatch(100, torch.Generator(), label=0)) == 5
    assert len(train[torch.tensor([1, 2, 3])].of_class(1)) == 2, "a subset knows its own classes"


def test_batches_are_passes_without_end():
    train = examples(10, 3)
    batches = [
        inputs
        for (inputs, labels), _ in zip(train.batches(4, torch.Generator().manual_seed(0)), range(5), strict=False)
    ]
    assert [len(inputs) for inputs in batches] == [4] * 5
    for first, second in ((0, 1), (2, 3)):
        assert len(torch.cat([batches[first], batches[second]]).unique(dim=0)) == 8
    assert not torch.equal(batches[0], batches[2])
    assert len(next(examples(3, 3).batches(4, torch.Generator()))[0]) == 3


def examples(n: int, *shape: int, seed: int = 0) -> ExampleSet:
    inputs = torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))
    return ExampleSet(inputs, torch.arange(n) % 2, INFO)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 15, 15), (5,)])
def test_a_checksum_notices_a_change_of_one_value(shape):
    train = examples(300, *shape)
    before = train.checksum()
    assert before == train.checksum() == examples(300, *shape).checksum()
    pixels = train.inputs.view(-1)
    for index in torch.randint(len(pixels), (50,), generator=torch.Generator().manual_seed(1)).tolist():
        value = pixels[index].clone()
        # The smallest change there is, in the last bit.
        pixels[index] = torch.nextafter(value, torch.tensor(9.0))
        assert train.checksum() != before
        pixels[index] = value
        assert train.checksum() == before
    train.labels[7] += 1
    assert train.checksum() != before


def test_a_checksum_notices_examples_that_move():
    train = examples(3000, 1, 28, 28)
    before = train.checksum()
    first = train.inputs[0].clone()
    train.inputs[0] = train.inputs[1]
    train.inputs[1] = first
    assert train.checksum() != before
    train = examples(3000, 1, 28, 28)
    train.inputs.copy_(train.inputs.flip(-1))
    assert train.checksum() != before
    train = examples(3000, 1, 28, 28)
    assert dataclasses.replace(train, inputs=train.inputs[1:], labels=train.labels[1:]).checksum() != before


def test_a_checksum_is_as_fast_as_memory():
    train = examples(60_000, 784)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        train.checksum()
        seconds.append(time.perf_counter() - started)
    # About 20 ms on one core; twenty times as much for a slow or loaded machine.
    assert min(seconds) < 0.4


def test_metadata_is_text():
    described = toy_set().described(seed=3, mean=[0.5], method="m")
    assert {k: json.loads(described.metadata[k]) for k in ("seed", "mean")} == {"seed": 3, "mean": [0.5]}
    assert described.metadata["method"] == "m"
    assert isinstance(described, DistilledSet)
    assert ExampleSet(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), INFO).info is INFO


def test_examples_spread_over_steps(make_prepared):
    train = make_prepared().train.random_subset(4, torch.Generator().manual_seed(0))
    inputs, labels = train.in_steps(2)
    assert inputs.shape == (2, 20, 1, 8, 8)
    assert labels.tolist() == [[label for label in range(10) for _ in range(2)]] * 2
    assert torch.equal(inputs[1, 0], train.inputs[1])
    both = torch.cat([inputs[0], inputs[1]]).flatten(1)
    torch.testing.assert_close(both.sum(0), train.inputs.flatten(1).sum(0), atol=1e-4, rtol=1e-4)
    uneven, _ = train.in_steps(3)
    assert uneven.shape[:2] == (1, 40)
