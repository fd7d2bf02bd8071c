"""Text: words as numbers, a vocabulary of the training split, frozen word vectors, and the nearest words of vectors."""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ddbench.contract.component import modality
from ddbench.contract.examples import ExampleSet, ExamplesRequest, ImageSplits, Splits
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.errors import DdbenchError, PluginError, UsageError
from ddbench.machine.environment import free_memory
from ddbench.machine.files import sha256

PADDING, UNKNOWN = 0, 1
"""Numbers of the two entries of a vocabulary that are no words: nothing, and any word that is not in it."""
BLANK, OTHER = "_", "<unknown>"
"""Spelling of these two; no token is spelt like them."""
LENGTH, DIM, WORDS = 24, 50, 5000
"""Usual words of a sentence, values of a word vector, and words of a vocabulary."""
SEED = 0
"""Seed of random word vectors: the same for every run, as the vectors belong to the dataset."""
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")
_CHUNK = 2_000
"""Vectors that are compared with the vocabulary at a time."""


def tokens(sentence: str) -> list[str]:
    """Return the words and punctuation marks of a sentence in small letters, in their order.

    Characters are brought to one form first (Unicode NFKC); those that cannot be printed, and underscores, count as
    blanks.
    """
    form = unicodedata.normalize("NFKC", sentence).lower()
    return _TOKEN.findall("".join(character if character.isprintable() else " " for character in form))


def vocabulary_of(sentences: Sequence[Sequence[str]], words: int) -> tuple[str, ...]:
    """Return the `words` most frequent tokens, behind the entries for nothing and for other words.

    Ties go to the first in the alphabet, so that it depends on nothing but the sentences.
    """
    counts = Counter(token for sentence in sentences for token in sentence)
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return (BLANK, OTHER, *ordered[:words])


def numbered(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> Int[Tensor, "n length"]:
    """Return the numbers of the first `length` tokens of each sentence, with `PADDING` behind shorter ones."""
    number = {token: i for i, token in enumerate(vocabulary)}
    ids = np.full((len(sentences), length), PADDING, np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        kept = [number.get(token, UNKNOWN) for token in sentence[:length]]
        row[: len(kept)] = kept
    return torch.from_numpy(ids)


def text_splits(
    train: Sequence[str],
    train_labels: Sequence[int],
    test: Sequence[str],
    test_labels: Sequence[int],
    *,
    length: int = LENGTH,
    dim: int | None = None,
    words: int = WORDS,
    vectors: Path | None = None,
    notices: tuple[str, ...] = (),
) -> Splits:
    """Return sentences and class numbers as a dataset of the modality `text`; the vocabulary is that of `train` alone.

    Args:
        train: the training sentences.
        train_labels: the number of the class of each.
        test: the test sentences.
        test_labels: the number of the class of each.
        length: words of a sentence; longer ones are cut, and a notice says how many.
        dim: values of a word vector; None for 50, or as many as the file has.
        words: most words of the vocabulary.
        vectors: file of word vectors, a word and its numbers in each line (GloVe, word2vec); None for random ones.
        notices: what the source has to say besides.

    Raises `UsageError` where no training sentence holds a word, and for a file of vectors that cannot be read.
    """
    split = [[tokens(sentence) for sentence in sentences] for sentences in (train, test)]
    vocabulary = vocabulary_of(split[0], words)
    if len(vocabulary) == 2:
        raise UsageError(
            "no training sentence holds a word, so there is no vocabulary.",
            "Check the column or the file that the sentences are read from.",
        )
    embedding: dict[str, object] = {"kind": "random", "seed": SEED, "dim": dim or DIM}
    shared: dict[str, Tensor] = {}
    if vectors is not None:
        shared["vectors"], covered = file_vectors(vectors, vocabulary, dim)
        embedding = {"kind": "file", "file": vectors.name, "sha256": sha256(vectors.read_bytes())}
        embedding["dim"] = shared["vectors"].shape[1]
        notices += (f"{covered} of {len(vocabulary) - 2} words have a vector in {vectors.name}; others a random one",)
    metadata = {"vocabulary": json.dumps(vocabulary, ensure_ascii=False), "embedding": json.dumps(embedding)}
    ids = [numbered(sentences, vocabulary, length) for sentences in split]
    notices += tuple(_remarks(split, ids, length))
    labels = [torch.tensor(numbers, dtype=torch.int64) for numbers in (train_labels, test_labels)]
    return Splits(ids[0], labels[0], ids[1], labels[1], notices=notices, tensors=shared, metadata=metadata)


def _remarks(split: Sequence[Sequence[Sequence[str]]], ids: Sequence[Tensor], length: int) -> list[str]:
    """Return what numbering did to the sentences, each as a notice."""
    sentences = [sentence for part in split for sentence in part]
    cut = sum(len(sentence) > length for sentence in sentences)
    empty = sum(not sentence for sentence in sentences)
    kept, unknown = (int(sum((part != PADDING).sum() for part in ids)), int(sum((p == UNKNOWN).sum() for p in ids)))
    remarks = [f"{cut} of {len(sentences)} sentences are cut to {length} words"] if cut else []
    remarks += [f"{empty} of {len(sentences)} sentences hold no word"] if empty else []
    remarks += [f"{unknown} of {kept} words are not in the vocabulary"] if unknown else []
    return remarks


def random_vectors(count: int, dim: int, seed: int) -> Float[Tensor, "count dim"]:
    """Return normal word vectors, zero for `PADDING`: a random projection of one-hot words.

    The generator is numpy's `RandomState`, whose stream is frozen: files of sets rely on it.
    """
    vectors = torch.from_numpy(np.random.RandomState(seed).standard_normal((count, dim)).astype(np.float32))
    vectors[PADDING] = 0
    return vectors


def file_vectors(
    path: Path, vocabulary: Sequence[str], dim: int | None = None
) -> tuple[Float[Tensor, "count dim"], int]:
    """Return the vectors of a vocabulary out of a file, scaled to mean square 1, and how many words the file has.

    Words that it lacks have random vectors. Raises `UsageError` for a file that cannot be read, has vectors of another
    length than `dim` or of several lengths, or has none of the words.
    """
    remedy = "Give a text file with a word and its numbers in each line, as GloVe has them."
    wanted = {token: i for i, token in enumerate(vocabulary) if i > UNKNOWN}
    rows: dict[int, np.ndarray] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *values = line.rstrip().split(" ")
                if (number == 1 and len(values) == 1) or word.lower() not in wanted:
                    continue  # the first line of word2vec states the size
                vector = np.array(values, np.float32)
                if dim is None:
                    dim = len(vector)
                if len(vector) != dim or not np.isfinite(vector).all():
                    raise UsageError(f"line {number} of {path} has not {dim} finite numbers.", remedy)
                rows.setdefault(wanted[word.lower()], vector)
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).rstrip(".")
        raise UsageError(f"the word vectors {path} cannot be read: {reason}.", remedy) from error
    if not rows or dim is None:
        raise UsageError(f"{path} has a vector for none of the {len(wanted)} words.", remedy)
    vectors = random_vectors(len(vocabulary), dim, SEED)
    scale = math.sqrt(float(np.mean([np.square(vector).mean() for vector in rows.values()])))
    for number, vector in rows.items():
        vectors[number] = torch.from_numpy(vector / scale)
    return vectors, len(rows)


def embed(ids: Int[Tensor, "n length"], vectors: Float[Tensor, "words dim"]) -> Float[Tensor, "n length dim"]:
    """Return the vectors of token numbers: the inputs of every network for text."""
    return F.embedding(ids, vectors)


def nearest_words(
    sentences: Float[Tensor, "n length dim"], vocabulary: Sequence[str], vectors: Float[Tensor, "words dim"]
) -> list[list[tuple[str, float]]]:
    """Return, for each position of each sentence, the word whose vector is nearest, with the Euclidean distance.

    `PADDING` is a word here, the one whose vector is zero: nothing stands at such a place.
    """
    n, length, dim = sentences.shape
    pairs: list[tuple[str, float]] = []
    for part in torch.split(sentences.reshape(-1, dim), _CHUNK):
        distances, numbers = torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        pairs += zip((vocabulary[number] for number in numbers.tolist()), distances.tolist(), strict=True)
    return [pairs[row * length : (row + 1) * length] for row in range(n)]


def read_sentences(distilled: DistilledSet) -> Presentation:
    """Return the nearest words of the sentences of a set, with distances, and its vocabulary.

    A distance of 0 is a word itself; random vectors of d values are about sqrt(2 d) apart.
    """
    metadata, inputs = distilled.metadata, distilled.flat()[0]
    vocabulary: list[str] = json.loads(metadata["vocabulary"])
    files = {"vocabulary.txt": "".join(f"{word}\n" for word in vocabulary).encode()}
    vectors = _vectors_of(metadata, vocabulary)
    if vectors is None:
        return Presentation(files=files, lines=("The word vectors that the sentences are read with are not here.",))
    classes = json.loads(metadata.get("classes", "[]"))
    targets = distilled.targets().flatten(0, 1)
    lines = []
    for sentence, target in zip(nearest_words(inputs, vocabulary, vectors), targets, strict=True):
        label = int(target.argmax()) if target.dim() else int(target)
        name = classes[label] if label < len(classes) else str(label)
        share = f" {float(target.max()):.2f}" if target.dim() else ""
        while sentence and sentence[-1] == (BLANK, 0.0):
            sentence = sentence[:-1]
        lines.append(f"{name}{share}: " + " ".join(f"{word}({distance:.1f})" for word, distance in sentence))
    return Presentation(lines=tuple(lines), files=files)


def _vectors_of(metadata: Mapping[str, str], vocabulary: Sequence[str]) -> Tensor | None:
    """Return the word vectors of a set; None where they came from a file that is not here, or has changed."""
    embedding = json.loads(metadata["embedding"])
    if embedding["kind"] == "random":
        return random_vectors(len(vocabulary), int(embedding["dim"]), int(embedding["seed"]))
    try:
        path = Path(json.loads(metadata["spec"])["dataset"]["options"]["vectors"]).expanduser()
        same = sha256(path.read_bytes()) == embedding["sha256"]
    except (KeyError, TypeError, OSError):
        return None
    return file_vectors(path, vocabulary)[0] if same else None


def few_sentences(generator: torch.Generator) -> Splits:
    """Return a few sentences in a random order, as an example of this modality."""
    words = ("the", "a", "cat", "dog", "sat", "ran", "fast", "slowly")
    order = torch.randint(len(words), (8, 4), generator=generator).tolist()
    sentences, labels = [" ".join(words[i] for i in row) for row in order], [0, 1] * 4
    return text_splits(sentences[:4], labels[:4], sentences[4:], labels[4:], length=5, dim=6)


@modality(present=read_sentences, example=few_sentences)
def text(splits: Splits | ImageSplits, request: ExamplesRequest) -> tuple[ExampleSet, ExampleSet]:
    """Sentences as token numbers, embedded by frozen word vectors: examples are [words, dim], zero behind the end."""
    request.refuse_image_settings()
    if not isinstance(splits, Splits) or splits.train_inputs.dtype != torch.int64 or splits.train_inputs.dim() != 2:
        raise PluginError(
            f"{request.name} holds text and gives no token numbers.", "Return ddbench.modalities.text_splits(...)."
        )
    vocabulary = json.loads(splits.metadata.get("vocabulary", "[]"))
    if not vocabulary:
        raise PluginError(f"{request.name} has no vocabulary.", "Return ddbench.modalities.text_splits(...).")
    vectors = splits.tensors.get("vectors")
    if vectors is None:
        embedding = json.loads(splits.metadata["embedding"])
        vectors = random_vectors(len(vocabulary), int(embedding["dim"]), int(embedding["seed"]))
    highest = max(int(ids.max()) for ids in (splits.train_inputs, splits.test_inputs))
    lowest = min(int(ids.min()) for ids in (splits.train_inputs, splits.test_inputs))
    if lowest < 0 or highest >= len(vectors):
        raise PluginError(
            f"{request.name} has token numbers outside 0 .. {len(vectors) - 1}.", "Number the vocabulary."
        )
    _check_memory(request.name, splits, vectors.shape[1])
    return request.examples(splits, embed(splits.train_inputs, vectors), embed(splits.test_inputs, vectors))


def _check_memory(name: str, splits: Splits, dim: int) -> None:
    """Raise `DdbenchError` where the embedded sentences, and the split of the training ones, cannot fit."""
    needed = (2 * splits.train_inputs.numel() + splits.test_inputs.numel()) * dim * 4
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DdbenchError(
            f"the sentences of {name} take {needed / 1e9:.1f} GB as vectors; {free / 1e9:.1f} GB are free.",
            "Cut them shorter, such as --set dataset.length=16, or take --set dataset.dim=25.",
        )
