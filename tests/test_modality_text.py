"""Text: tokens, vocabulary, frozen vectors, and sentences that are read back."""

import json
from pathlib import Path

import pytest
import torch

import ddbench as dd
from ddbench.contract.examples import ExamplesRequest, Splits
from ddbench.contract.sets import DistilledSet
from ddbench.errors import PluginError, UsageError
from ddbench.modalities import text_splits, tokens
from ddbench.modalities.text import embed, file_vectors, nearest_words, random_vectors, read_sentences, text

TRAIN = ["The cat sat.", "A dog ran, a dog!", "the cat ran"]
TEST = ["The ferret sat."]
REQUEST = ExamplesRequest("toy", ("a", "b"), "text", ())


def splits(train=TRAIN, test=TEST, **options) -> Splits:
    return text_splits(train, [i % 2 for i in range(len(train))], test, [0] * len(test), **options)


def test_tokens_are_words_and_marks_in_small_letters():
    assert tokens("Don’t PANIC: it's 42%…  ok_ok") == [
        "don’t",
        "panic",
        ":",
        "it's",
        "42",
        "%",
        ".",
        ".",
        ".",
        "ok",
        "ok",
    ]
    assert tokens(" \t\x00 ") == []
    # One letter written in two ways is one word.
    assert tokens("cafe\u0301") == tokens("caf\u00e9") == ["café"]


def test_the_vocabulary_is_that_of_the_training_split_alone():
    vocabulary = json.loads(splits().metadata["vocabulary"])
    assert vocabulary == ["_", "<unknown>", "a", "cat", "dog", "ran", "the", "!", ",", ".", "sat"][:2] + vocabulary[2:]
    assert set(vocabulary[2:7]) == {"a", "cat", "dog", "ran", "the"}
    assert vocabulary[2:7] == sorted(vocabulary[2:7])
    assert "ferret" not in vocabulary
    # Other test sentences change nothing.
    assert json.loads(splits(test=["ferret ferret ferret"]).metadata["vocabulary"]) == vocabulary
    assert splits(words=2).metadata["vocabulary"] == json.dumps(["_", "<unknown>", "a", "cat"])


def test_sentences_are_numbered_padded_and_cut():
    loaded = splits(length=4)
    vocabulary = json.loads(loaded.metadata["vocabulary"])
    words = [[vocabulary[i] for i in row] for row in loaded.train_inputs.tolist()]
    assert words == [["the", "cat", "sat", "."], ["a", "dog", "ran", ","], ["the", "cat", "ran", "_"]]
    assert [vocabulary[i] for i in loaded.test_inputs[0]] == ["the", "<unknown>", "sat", "."]
    assert loaded.notices == ("1 of 4 sentences are cut to 4 words", "1 of 15 words are not in the vocabulary")
    assert "1 of 4 sentences hold no word" in splits(train=["a b", "", "c d"]).notices


def test_equal_texts_have_equal_hashes_and_other_options_others():
    assert splits().content_hash() == splits().content_hash()
    hashes = {splits(**o).content_hash() for o in ({}, {"length": 5}, {"dim": 8}, {"words": 3})}
    assert len(hashes) == 4


def test_without_a_word_there_is_no_vocabulary():
    with pytest.raises(UsageError, match="no training sentence holds a word"):
        splits(train=["", " \t"])


def test_examples_are_embedded_and_read_back():
    train, test = text(splits(length=6, dim=16), REQUEST)
    assert train.inputs.shape == (3, 6, 16) and test.inputs.shape == (1, 6, 16)
    assert train.info.sample_shape == (6, 16) and train.info.augmentations == ()
    # Nothing stands behind the end of a sentence.
    assert not train.inputs[2, 3:].any() and train.inputs[2, :3].any(1).all()
    metadata = {**train.info.metadata, "classes": '["a", "b"]'}
    shown = read_sentences(DistilledSet(train.inputs[None], train.labels[None], metadata=metadata))
    assert shown.lines[2] == "a: the(0.0) cat(0.0) ran(0.0)"
    assert shown.files["vocabulary.txt"].decode().splitlines()[:2] == ["_", "<unknown>"]
    soft = DistilledSet(train.inputs[None, :1] + 0.1, torch.tensor([[[0.25, 0.75]]]), metadata=metadata)
    # Each of 16 values is moved by .1, so each word by .4, and so is nothing.
    assert read_sentences(soft).lines == ("b 0.75: the(0.4) cat(0.4) sat(0.4) .(0.4) _(0.4) _(0.4)",)


def test_the_nearest_word_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    vectors, sentences = torch.randn(30, 5, generator=generator), torch.randn(4, 7, 5, generator=generator)
    words = [str(i) for i in range(30)]
    for sentence, pairs in zip(sentences, nearest_words(sentences, words, vectors), strict=True):
        for vector, (word, distance) in zip(sentence, pairs, strict=True):
            distances = (vectors - vector).square().sum(1).sqrt()
            assert int(word) == int(distances.argmin())
            assert distance == pytest.approx(float(distances.min()), rel=1e-5)


def test_random_vectors_are_frozen():
    # Files of distilled sets name the seed alone: these numbers must never change.
    vectors = random_vectors(3, 4, 0)
    assert vectors[0].tolist() == [0, 0, 0, 0]
    assert vectors[1].tolist() == pytest.approx([1.867558, -0.977278, 0.950088, -0.151357], abs=1e-6)
    assert embed(torch.tensor([[1, 0]]), vectors).shape == (1, 2, 4)


def test_word_vectors_of_a_file(tmp_path: Path):
    path = tmp_path / "glove.txt"
    path.write_text("3 2\nCAT 3 4\nzebra 9 9\nthe 0 5\n")
    vectors, covered = file_vectors(path, ("_", "<unknown>", "the", "cat", "sat"))
    assert covered == 2
    # Scaled to mean square 1: (9 + 16) / 2 and 25 / 2 have the root 5 / sqrt(2).
    assert torch.allclose(vectors[2:4], torch.tensor([[0.0, 5.0], [3.0, 4.0]]) / 5 * 2**0.5)
    assert not vectors[0].any() and vectors[4].any()
    loaded = splits(vectors=path)
    assert "2 of 9 words have a vector in glove.txt; others a random one" in loaded.notices
    train, _ = text(loaded, REQUEST)
    spec = {"dataset": {"options": {"vectors": str(path)}}}
    metadata = {**train.info.metadata, "classes": '["a", "b"]', "spec": json.dumps(spec)}
    distilled = DistilledSet(train.inputs[None, :1], train.labels[None, :1], metadata=metadata)
    assert read_sentences(distilled).lines == ("a: the(0.0) cat(0.0) sat(0.0) .(0.0)",)
    path.write_text("another")
    assert read_sentences(distilled).lines == ("The word vectors that the sentences are read with are not here.",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat 1 2\nthe 1 2 3\n", "line 2 of .* has not 2 finite numbers"),
        ("cat 1 nan\n", "line 1 of .* has not 2 finite numbers"),
        ("cat one two\n", "cannot be read: could not convert"),
        ("zebra 1 2\n", "has a vector for none of the 9 words"),
        (b"cat 1 2\ncaf\xe9 1 2\n", "cannot be read: it is not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_word_vectors_that_cannot_be_used(tmp_path: Path, content, message: str):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        splits(vectors=path)


def test_what_is_no_text_is_refused():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    labels = torch.tensor([0, 1])
    with pytest.raises(PluginError, match="has no vocabulary"):
        text(Splits(ids, labels, ids, labels), REQUEST)
    with pytest.raises(PluginError, match="gives no token numbers"):
        text(Splits(ids.float(), labels, ids.float(), labels), REQUEST)
    loaded = splits()
    loaded.train_inputs[0, 0] = 99
    with pytest.raises(PluginError, match="token numbers outside 0 .. 10"):
        text(loaded, REQUEST)
    for request, match in (
        (ExamplesRequest("toy", ("a", "b"), "text", (), sample_shape=(1, 8, 8)), "not converted to another shape"),
        (ExamplesRequest("toy", ("a", "b"), "text", (), whitening="zca"), "whitening is for images"),
    ):
        with pytest.raises(UsageError, match=match):
            text(splits(), request)


def test_sentences_too_large_for_memory_are_refused(monkeypatch):
    monkeypatch.setattr("ddbench.modalities.text.free_memory", lambda device: 1000)
    with pytest.raises(dd.DdbenchError, match="take .* GB as vectors") as error:
        text(splits(), REQUEST)
    assert "dataset.length" in error.value.hint
