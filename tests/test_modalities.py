"""Modalities as plugins, and datasets of text, sound and arrays as a user names them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from typer.testing import CliRunner

import ddbench as dd
from ddbench.builtin import text as builtin_text
from ddbench.cli.app import app
from ddbench.contract.examples import DatasetInfo, ExamplesRequest, Splits
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice, RunSpec
from ddbench.contract.state import State
from ddbench.discovery.modalities import present
from ddbench.engine import augment
from ddbench.errors import MissingPrerequisite, PluginError, Unsupported, UsageError
from ddbench.modalities.array import array
from ddbench.networks import features, gradient
from ddbench.pipeline.data import load_examples
from ddbench.pipeline.export import export
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from ddbench.testing import conform, find
from tests.refusals import refusal

TOPICS = {"animal": "the cat and the dog ran", "weather": "rain or snow or sun today"}


def questions(where: Path, rows: list[tuple[str, str, str]] | None = None) -> str:
    """Write a table of sentences, and return the name of its dataset."""
    if rows is None:
        rows = [
            (f"{TOPICS[label]} {word}", label, split)
            for split, words in (("train", "one two three four five six"), ("test", "seven eight"))
            for word in words.split()
            for label in TOPICS
        ]
    path = where / "questions.csv"
    path.write_text("sentence,label,split\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    return f"csv:{path}"


def tones(where: Path, rates: tuple[int, int] = (8000, 8000)) -> Path:
    """Write a folder of tones in two classes."""
    for label, hertz, rate in (("low", 300, rates[0]), ("high", 2000, rates[1])):
        for split, count in (("train", 4), ("test", 2)):
            folder = where / "tones" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                clip = np.sin(2 * np.pi * (hertz + 10 * number) * np.arange(rate // 4) / rate)
                wavfile.write(folder / f"{number}.wav", rate, (20000 * clip).astype(np.int16))
    return where / "tones"


@pytest.mark.parametrize("name", ["image", "text", "sound", "array"])
def test_the_modalities_that_ship_conform(catalog, name):
    assert [o for o in conform(find("modality", name, catalog), catalog) if o.status == "failed"] == []


@pytest.mark.slow
def test_a_table_of_sentences_is_distilled_and_read(ddbench, tmp_path):
    done = ddbench("run", "-m", "dm", "-d", questions(tmp_path), "--ipc", "1", "--smoke", "--eval-networks", "2")
    assert done.code == 0, done.err
    assert "0 of" not in done.err and "text_cnn" in done.err and "Recipe   augmentation=" in done.err
    [folder] = (tmp_path / "runs").iterdir()
    lines = (folder / "distilled.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["animal", "weather"]
    assert all(re.fullmatch(r"\S+\(\d+\.\d\)", word) for word in lines[0].split()[1:])
    assert lines[0] in ddbench("show", folder).out
    assert "snow" in (folder / "vocabulary.txt").read_text().splitlines()
    metadata = DistilledSet.load(folder / "distilled.safetensors").metadata
    assert metadata["modality"] == "text" and json.loads(metadata["embedding"])["dim"] == 50
    assert not (folder / "distilled.png").exists()


@pytest.mark.slow
def test_a_folder_of_sounds_is_distilled_and_heard(ddbench, tmp_path):
    folder = tones(tmp_path, (8000, 4000))
    flags = ("--set", "dataset.rate=8000", "--set", "dataset.seconds=0.25", "--set", "dataset.size=16")
    done = ddbench(
        "run", "-m", "idc", "-d", f"folder:{folder}", "--ipc", "1", "--smoke", *flags, "--set", "network.width=4"
    )
    assert done.code == 0, done.err
    assert "6 of 12 were converted to 8000 samples a second" in done.err
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "distilled.png").exists()
    stored = DistilledSet.load(run / "distilled.safetensors")
    # Tiles divide time alone: two clips of half the length for each stored one.
    assert stored.decoder_options == {"factor": 2, "along": "width"} and stored.count == 4
    assert len(list((run / "sounds").glob("*.wav"))) == 4
    rate, clip = wavfile.read(run / "sounds" / "000-high.wav")
    assert rate == 8000 and len(clip) == 2000


@pytest.mark.slow
def test_vectors_of_any_kind_are_distilled(ddbench, tmp_path):
    generator = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = generator.normal(size=(60, 7)) + 3 * np.eye(7)[y]
    np.savez(tmp_path / "set.npz", x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    done = ddbench(
        "run", "-m", "k_means", "-d", f"npz:{tmp_path}/set.npz", "--ipc", "1", "--protocol", "train/v1", "--json"
    )
    assert done.code == 0, done.err
    assert done.json()["settings"]["network"]["name"] == "linear"
    assert done.json()["dataset"]["sample_shape"] == [7]
    assert done.json()["scores"]["accuracy"]["mean"] > 0.9


def test_layouts_of_images_hold_nothing_else(catalog, tmp_path):
    path = tmp_path / "set.safetensors"
    metadata = {"modality": "sound", "classes": '["a", "b"]'}
    DistilledSet(torch.rand(1, 2, 1, 8, 8), torch.tensor([[0, 1]]), metadata=metadata).save(path)
    with pytest.raises(UsageError, match="holds sound, not images"):
        export(path, "npz", catalog)


def test_arrays_are_normalised_value_by_value():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 3, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.0])[:, None] + 7
    labels = torch.arange(50) % 2
    train, test = array(Splits(values, labels, values[:5], labels[:5]), ExamplesRequest("toy", ("a", "b"), "array"))
    assert train.inputs[:, :2].mean((0, 2)).abs().max() < 1e-5
    assert train.inputs[:, :2].std((0, 2), correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)
    # A constant becomes zero, not NaN, and numbers lead back.
    assert train.inputs[:, 2].abs().max() < 1e-4
    assert torch.allclose(train.info.pixels(test.inputs), values[:5], atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("the cat", "a", "train"), ("a dog", "a", "test")], "has one class only: a"),
        ([("!", "a", "valid"), ("?", "b", "train")], "has no training examples of class 'a'"),
        ([("the cat", "", "train"), ("a dog", "b", "test")], "row 1 of .* has no label"),
        ([("the cat", "a", "dev"), ("a dog", "b", "test")], "the cat in .* has the split 'dev'"),
        ([("", "a", "train"), (" ", "b", "train"), ("cat", "b", "test")], "no training sentence holds a word"),
    ],
)
def test_tables_of_sentences_that_are_no_dataset(tmp_path, rows, message):
    code, text = refusal(questions(tmp_path, rows), where=tmp_path)
    assert code == 2 and re.search(message, text), text


def test_labels_with_blanks_are_names(catalog, tmp_path):
    name = questions(
        tmp_path,
        [("a cat", " big animal ", "train"), ("a fly", "small animal", "train"), ("a cow", "big animal", "test")],
    )
    assert catalog.get("dataset", name).facts["classes"] == ("big animal", "small animal")


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes("text,label\ncafé,a\nthé,b\n".encode("latin-1"))
    code, text = refusal(f"csv:{tmp_path}/x.csv", where=tmp_path)
    assert code == 2 and "cannot be read as a CSV file" in text and "Save it as UTF-8" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "trec is not in"),
        ("NUM:date When ?\nWHAT:ever Who ?\n", "line 2 of .*trec_train.label has the label 'WHAT'"),
        ("NUM:date Quand était-ce ?\n".encode("latin-1"), "is not UTF-8: byte 0xe9 at position 15"),
    ],
)
def test_files_of_a_dataset_that_cannot_be_read(catalog, tmp_path, content, message):
    folder = tmp_path / "text"
    folder.mkdir()
    if content is not None:
        for split in ("train", "test"):
            raw = content if isinstance(content, bytes) else content.encode()
            (folder / f"trec_{split}.label").write_bytes(raw)
    kind = MissingPrerequisite if content is None else dd.DdbenchError
    with pytest.raises(kind, match=message):
        catalog.get("dataset", "trec").call({}, tmp_path, False)


def test_missing_files_are_downloaded_into_the_layout_that_is_kept(catalog, tmp_path, monkeypatch):
    remote = {
        "trec_train.label": ["NUM:date When was it ?", "LOC:city Which city is it ?"],
        "trec_test.label": ["NUM:date When is it ?"],
    }
    monkeypatch.setattr(builtin_text, "_fetch", lambda file, name: remote[file])
    loaded = catalog.get("dataset", "trec").call({}, tmp_path, True)
    assert loaded.train_labels.tolist() == [5, 4]
    assert (tmp_path / "text" / "trec_train.label").read_text().splitlines() == remote["trec_train.label"]

    def offline(file: str, name: str) -> list[str]:
        raise OSError("no route to host")

    monkeypatch.setattr(builtin_text, "_fetch", offline)
    with pytest.raises(MissingPrerequisite, match=r"cannot be downloaded \(no route to host\)"):
        catalog.get("dataset", "sst2").call({}, tmp_path, True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "examples", "classes"), [("trec", 5444, 6), ("sst2", 6920, 2), ("ag_news", 10001, 4)])
def test_real_sentences(catalog, real_data, name, examples, classes):
    component = catalog.get("dataset", name)
    try:
        loaded = component.call({}, real_data, False)
    except MissingPrerequisite:
        pytest.skip(f"needs {name}")
    assert len(loaded.train_labels) == examples and len(component.facts["classes"]) == classes
    assert set(loaded.test_labels.tolist()) == set(range(classes))


NETWORKS = ("text_cnn", "bag_of_embeddings", "gru")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_for_text_take_states_and_give_gradients(catalog, name):
    info = DatasetInfo("x", ("a", "b", "c"), (5, 6), (0.0,), (1.0,), "text", "", False)
    module = catalog.get("network", name).call({}, info)
    sentences = torch.randn(4, 5, 6, requires_grad=True)
    state = State({n: p.detach() for n, p in module.named_parameters()}, {})
    assert module(sentences).shape == (4, 3) and features(module, state, sentences).shape[0] == 4
    # What distillation by matching needs: a gradient of a gradient by the sentences.
    grads = gradient(module, state, sentences, torch.tensor([0, 1, 2, 0]), create_graph=True)
    [second] = torch.autograd.grad(sum(g.square().sum() for g in grads.values()), sentences)
    assert second.abs().sum() > 0
    # Another state gives other outputs: no weight is hidden from it.
    zero = State({n: torch.zeros_like(p) for n, p in state.params.items()}, {})
    assert not features(module, zero, sentences).any()
    with pytest.raises(UsageError, match=r"takes sentences \[words, dim\]"):
        catalog.get("network", name).call(
            {}, DatasetInfo("x", ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "image", "", False)
        )


def test_the_recurrent_network_is_that_of_torch(catalog):
    info = DatasetInfo("x", ("a", "b"), (5, 6), (0.0,), (1.0,), "text", "", False)
    own = catalog.get("network", "gru").call({"width": 4}, info)
    reference = torch.nn.GRU(6, 4, batch_first=True)
    with torch.no_grad():
        # torch orders the gates alike: reset, update, candidate.
        reference.weight_ih_l0.copy_(own.inputs.weight)
        reference.bias_ih_l0.copy_(own.inputs.bias)
        reference.weight_hh_l0.copy_(own.recurrent.weight)
        reference.bias_hh_l0.copy_(own.recurrent.bias)
    sentences = torch.randn(3, 5, 6)
    assert torch.allclose(own(sentences), own.classifier(reference(sentences)[0].amax(1)), atol=1e-6)


def test_the_bag_keeps_the_scale_of_words(catalog):
    info = DatasetInfo("x", ("a", "b"), (100, 6), (0.0,), (1.0,), "text", "", False)
    bag = catalog.get("network", "bag_of_embeddings").call({}, info)[0]
    sums = bag(torch.randn(2000, 100, 6, generator=torch.Generator().manual_seed(0)))
    assert sums.std() == pytest.approx(1, abs=0.03)
    assert math.isclose(float(bag(torch.ones(1, 4, 1)).squeeze()), 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-d", "digits", "--network", "text_cnn"), "text_cnn takes text; digits holds image"),
        (("--network", "convnet"), "convnet of depth 3 takes square images"),
        (("--protocol", "train-dsa/v1"), r"train-dsa/v1 augments images \(color, .*holds text"),
        (("--protocol", "train-imagenet/v1"), r"\(flip, resized_crop, cutmix\)"),
        (("--set", "sample_shape=[1,8,8]"), "holds text, which is not converted"),
        (("--whitening", "zca"), "holds text; whitening is for images"),
        (("--set", "dataset.length=0"), "option length=0"),
        (("--set", "dataset.vectors=/nowhere"), "word vectors /nowhere cannot be read"),
    ],
)
def test_settings_for_images_are_refused_for_text(tmp_path, flags, message):
    base = ["run", "-m", "random_subset", "-d", questions(tmp_path), "--ipc", "1"]
    done = CliRunner().invoke(
        app, [*base, *flags, "--runs", str(tmp_path / "runs"), "--leaderboards", str(tmp_path / "boards")]
    )
    text = " ".join(done.stderr.split())
    assert re.search(message, text), text
    assert done.exit_code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["dsa", "idc"])
def test_methods_for_images_decline_text_with_the_reason(catalog, tmp_path, method):
    spec = {"method": method, "dataset": questions(tmp_path), "images_per_class": 1, "smoke": True}
    plan = plan_run(RunSpec.parse(spec), catalog)
    run = Run(tmp_path, seed=0)
    task = prepare(plan, catalog).task(run.generator)
    with pytest.raises(Unsupported, match="cannot be augmented by color|takes images"):
        plan.method.call(plan.settings.method.options, task, run)


def test_augmentation_is_per_modality():
    def info(modality: str, shape: tuple[int, ...], operations: tuple[str, ...]) -> DatasetInfo:
        return DatasetInfo("x", ("a", "b"), shape, (0.0,), (1.0,), modality, "", False, augmentations=operations)

    sound = info("sound", (1, 8, 8), ("crop", "cutout"))
    augment.refuse("crop_cutout", sound)
    augment.refuse("", info("text", (4, 5), ()))
    with pytest.raises(Unsupported, match=r"x, which are sound of shape \[1, 8, 8\], cannot be augmented by flip"):
        augment.refuse("crop_flip", sound)
    with pytest.raises(Unsupported, match="cannot be augmented by crop"):
        augment.refuse("crop", info("text", (4, 5), ()))
    with pytest.raises(UsageError, match="unknown operation"):
        augment.refuse("crop_turn", sound)


def test_recipes_of_images_have_no_augmentation_elsewhere(catalog, tmp_path):
    for method, option in (("dm", "augmentation"), ("mtt", "augment"), ("rat_bptt", "augment")):
        plan = plan_run(RunSpec.parse({"method": method, "dataset": questions(tmp_path)}), catalog)
        assert plan.settings.method.options[option] == ""


def test_a_modality_of_another_plugin(tmp_path):
    def lines(distilled: DistilledSet) -> object:
        return dd.Presentation(lines=("seen",))

    def few(generator: torch.Generator) -> Splits:
        values, labels = torch.rand(4, 3, generator=generator), torch.arange(4) % 2
        return Splits(values, labels, values, labels)

    @dd.modality(present=lines, example=few)
    def counts(splits: Splits, request: ExamplesRequest) -> object:
        """Take logarithms."""
        return request.examples(splits, splits.train_inputs.log1p(), splits.test_inputs.log1p())

    @dd.dataset(classes=("a", "b"), sample_shape=(3,), network="linear", modality="counts")
    def toy(root: Path, download: bool) -> Splits:
        """Counts that are made up."""
        return few(torch.Generator().manual_seed(0))

    catalog = dd.Catalog()
    component = dd.component_of(toy, "dataset")
    with pytest.raises(PluginError, match="is of the unknown modality 'counts'"):
        load_examples(component, Choice(name="toy"), None, download=False, catalog=catalog)
    catalog._components["modality"].append(dd.component_of(counts, "modality"))
    train, _ = load_examples(component, Choice(name="toy"), None, download=False, catalog=catalog)
    assert train.info.modality == "counts" and train.inputs.max() < math.log(2)
    shown = present(DistilledSet(train.inputs[None], train.labels[None], metadata={"modality": "counts"}), catalog)
    assert shown.lines == ("seen",)
    with pytest.raises(MissingPrerequisite, match="modality 'smell', which no plugin here offers"):
        present(DistilledSet(train.inputs[None], train.labels[None], metadata={"modality": "smell"}), catalog)
    with pytest.raises(UsageError, match="the set holds counts, which has no pixels"):
        DistilledSet(train.inputs[None], train.labels[None], metadata={"modality": "counts"}).pixels()
