"""Datasets of sentences, and networks that take them as word vectors [words, dim]."""

import contextlib
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DatasetInfo, DdbenchError, MissingPrerequisite, Splits, UsageError
from ddbench.modalities import text_splits

LENGTH, DIM = 24, 50
NETWORK = "text_cnn"

Length = Annotated[int, Field(ge=1, le=1000, description="words of a sentence; longer ones are cut")]
Dim = Annotated[
    int | None, Field(ge=1, le=1000, description="values of a word vector; by default 50, or those of the file")
]
Words = Annotated[int, Field(ge=1, description="most words of the vocabulary, the most frequent of the training split")]
Vectors = Annotated[
    str | None, Field(description="file of word vectors, a word and its numbers a line; by default random vectors")
]

TREC = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
NEWS = ("World", "Sports", "Business", "Sci/Tech")
SOURCES = {
    "sst2": "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2",
    "trec": "https://cogcomp.seas.upenn.edu/Data/QA/QC",
    "ag_news": "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv",
}
"""Where files are downloaded from; see `_fetch`."""


@ddbench.dataset(classes=TREC, sample_shape=(LENGTH, DIM), network=NETWORK, modality="text", images_per_class=1)
def trec(
    root: Path,
    download: bool,
    *,
    length: Length = LENGTH,
    dim: Dim = None,
    words: Words = 5000,
    vectors: Vectors = None,
) -> Splits:
    """TREC: 5452 and 500 questions by what they ask for, six classes (Li and Roth 2002).

    A copy may lack a few lines of the original; rows carry the hash of what was read.
    """
    train, test = (
        _labelled(root / "text" / f"trec_{split}.label", TREC, _question, download, "trec") for split in SPLITS
    )
    return splits_of(train, test, length, dim, words, vectors)


@ddbench.dataset(
    classes=("negative", "positive"), sample_shape=(LENGTH, DIM), network=NETWORK, modality="text", images_per_class=1
)
def sst2(
    root: Path,
    download: bool,
    *,
    length: Length = LENGTH,
    dim: Dim = None,
    words: Words = 5000,
    vectors: Vectors = None,
) -> Splits:
    """SST-2: 6920 and 1821 sentences of film reviews, negative or positive (Socher et al. 2013)."""
    train, test = (
        _labelled(root / "text" / f"sst2_{split}.tsv", ("0", "1"), _tabbed, download, "sst2") for split in SPLITS
    )
    return splits_of(train, test, length, dim, words, vectors)


@ddbench.dataset(classes=NEWS, sample_shape=(LENGTH, DIM), network=NETWORK, modality="text", images_per_class=1)
def ag_news(
    root: Path,
    download: bool,
    *,
    length: Length = LENGTH,
    dim: Dim = None,
    words: Words = 5000,
    vectors: Vectors = None,
) -> Splits:
    """AG News: 120 000 and 7600 beginnings of news items by topic, four classes (Zhang et al. 2015).

    Training sentences are those of `agnews_train.tsv`, or of `agnews_subset_train.tsv` where that is all there is.
    """
    folder = root / "text"
    whole, subset = folder / "agnews_train.tsv", folder / "agnews_subset_train.tsv"
    chosen = subset if subset.is_file() and not whole.is_file() else whole
    train, test = (_labelled(path, NEWS, _tabbed, download, "ag_news") for path in (chosen, folder / "agnews_test.tsv"))
    return splits_of(train, test, length, dim, words, vectors)


SPLITS = ("train", "test")
Labelled = tuple[list[str], list[int]]
"""Sentences, and the number of the class of each."""


def splits_of(
    train: Labelled,
    test: Labelled,
    length: int,
    dim: int | None,
    words: int,
    vectors: str | None,
    notices: tuple[str, ...] = (),
) -> Splits:
    """Return sentences of both splits under the options that datasets of text have."""
    path = None if vectors is None else Path(vectors).expanduser()
    return text_splits(*train, *test, length=length, dim=dim, words=words, vectors=path, notices=notices)


def _question(line: str) -> tuple[str, str]:
    """Return the question and the coarse class of `COARSE:fine question`."""
    label, _, sentence = line.partition(" ")
    return sentence, label.partition(":")[0]


def _tabbed(line: str) -> tuple[str, str]:
    """Return the sentence and the label of `sentence<TAB>label`."""
    sentence, _, label = line.rpartition("\t")
    return sentence, label.strip()


def _labelled(
    path: Path, classes: Sequence[str], parse: Callable[[str], tuple[str, str]], download: bool, name: str
) -> Labelled:
    """Read a file of one example a line, after fetching it where it is missing.

    Raises `MissingPrerequisite` where it is not to be had, `DdbenchError` where it is not UTF-8 or not of this layout.
    """
    if not path.is_file():
        _obtain(path, name, download)
    sentences, labels = [], []
    for number, line in enumerate(read_lines(path), start=1):
        sentence, label = parse(line)
        if label not in classes:
            raise DdbenchError(
                f"line {number} of {path} has the label {label!r}, which is not one of {', '.join(classes)}.",
                f"Put the original file of {name} there.",
            )
        sentences.append(sentence)
        labels.append(classes.index(label))
    return sentences, labels


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank. Raises `DdbenchError` where it is not UTF-8."""
    try:
        # Not splitlines: it would break lines at characters that sentences contain.
        return [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DdbenchError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}.",
            "Convert it, such as with: iconv -f latin1 -t utf-8",
        ) from error


def _obtain(path: Path, name: str, download: bool) -> None:
    """Download a missing file of a dataset. Raises `MissingPrerequisite` where that is not allowed or fails."""
    advice = f"Put {path.name} into {path.parent}, or set DDBENCH_DATA."
    if not download:
        raise MissingPrerequisite(f"{name} is not in {path.parent}.", advice)
    try:
        lines = list(_fetch(path.name, name))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise MissingPrerequisite(
            f"{name} is not in {path.parent} and cannot be downloaded ({reason}).", advice
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def _fetch(file: str, name: str) -> Iterable[str]:
    """Yield the lines of a file in the layout in which it is kept, from the place where the originals are."""
    import csv
    import urllib.request

    split = "train" if "train" in file else "test"
    remote = {
        "sst2": f"{split}.tsv", "trec": "train_5500.label" if split == "train" else "TREC_10.label",
        "ag_news": f"{split}.csv",
    }[name]  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr), urllib.request.urlopen(f"{SOURCES[name]}/{remote}", timeout=60) as got:
        text = got.read().decode("latin-1" if name == "trec" else "utf-8")
    lines = [line for line in text.split("\n") if line.strip()]
    if name != "ag_news":
        return lines
    rows = csv.reader(lines)
    return [f"{' '.join(body.split())}\t{NEWS[int(number) - 1]}" for number, _, body in rows]


def _sentence_shape(info: DatasetInfo, network: str) -> tuple[int, int]:
    """Return (words, dim). Raises `UsageError` for examples that are no sequences of vectors."""
    if len(info.sample_shape) != 2:
        raise UsageError(
            f"{network} takes sentences [words, dim], not examples of shape {info.sample_shape}.", "Try --network mlp."
        )
    words, dim = info.sample_shape
    return words, dim


class TextCNN(nn.Module):
    """Convolutions of several widths along a sentence, each channel at its highest place, and a linear layer."""

    def __init__(self, dim: int, classes: int, width: int, spans: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, width, span, padding=(span - 1) // 2) for span in spans)
        self.classifier = nn.Linear(width * len(spans), classes)

    def forward(self, sentences: Float[Tensor, "n words dim"]) -> Float[Tensor, "n classes"]:
        """Return the logits of embedded sentences."""
        channels = sentences.transpose(1, 2)
        highest = [convolution(channels).relu().amax(2) for convolution in self.convolutions]
        logits: Tensor = self.classifier(torch.cat(highest, 1))
        return logits


@ddbench.network(takes=("text",))
def text_cnn(
    info: DatasetInfo, *, width: Annotated[int, Field(ge=1, description="channels of each span of words")] = 32
) -> nn.Module:
    """TextCNN: convolutions over 3, 4 and 5 words, maximum over time (Kim 2014; Sucholutsky and Schonlau 2021).

    Kim has 100 channels for each span, and dropout, which is off here. Spans longer than a sentence are padded.
    """
    _, dim = _sentence_shape(info, "text_cnn")
    return TextCNN(dim, len(info.classes), width, (3, 4, 5))


class Bag(nn.Module):
    """The sum of the word vectors of a sentence, divided by the square root of its positions to keep their scale."""

    def forward(self, sentences: Float[Tensor, "n words dim"]) -> Float[Tensor, "n dim"]:
        """Return the scaled sum over all positions."""
        return sentences.sum(1) / math.sqrt(sentences.shape[1])


@ddbench.network(takes=("text",))
def bag_of_embeddings(
    info: DatasetInfo, *, width: Annotated[int, Field(ge=1, description="units of the hidden layer")] = 64
) -> nn.Module:
    """Bag of embeddings: the sum of word vectors, whatever their order, a hidden layer and a linear one."""
    _, dim = _sentence_shape(info, "bag_of_embeddings")
    layers: OrderedDict[str, nn.Module] = OrderedDict(bag=Bag(), fc1=nn.Linear(dim, width), relu1=nn.ReLU())
    layers["classifier"] = nn.Linear(width, len(info.classes))
    return nn.Sequential(layers)


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014), its states at their highest over time, and a linear layer.

    It is written out, because torch's own keeps its weights where they cannot be replaced by those of a state.
    """

    def __init__(self, dim: int, classes: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(dim, 3 * width)
        self.recurrent = nn.Linear(width, 3 * width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, sentences: Float[Tensor, "n words dim"]) -> Float[Tensor, "n classes"]:
        """Return the logits of embedded sentences."""
        width = self.recurrent.in_features
        state, states = sentences.new_zeros(len(sentences), width), []
        for word in self.inputs(sentences).unbind(1):
            recurrent = self.recurrent(state)
            reset, update = (word + recurrent)[:, : 2 * width].sigmoid().chunk(2, 1)
            candidate = (word[:, 2 * width :] + reset * recurrent[:, 2 * width :]).tanh()
            state = update * state + (1 - update) * candidate
            states.append(state)
        logits: Tensor = self.classifier(torch.stack(states).amax(0))
        return logits


@ddbench.network(takes=("text",))
def gru(info: DatasetInfo, *, width: Annotated[int, Field(ge=1, description="units of the state")] = 32) -> nn.Module:
    """GRU: one recurrent layer, the maximum of its states over time, and a linear layer (Cho et al. 2014)."""
    _, dim = _sentence_shape(info, "gru")
    return GRU(dim, len(info.classes), width)


@ddbench.hookimpl
def ddbench_datasets() -> list[object]:
    return [trec, sst2, ag_news]


@ddbench.hookimpl
def ddbench_networks() -> list[object]:
    return [text_cnn, bag_of_embeddings, gru]
