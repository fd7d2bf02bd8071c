"""Datasets of clips of sound, read into samples of one rate and one length."""

import contextlib
import sys
import tempfile
import urllib.request
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

import ddbench
from ddbench import DdbenchError, MissingPrerequisite, Splits
from ddbench.modalities import sound_splits

SUFFIXES = (".wav", ".flac")
SIZE = 32
NETWORK = {"name": "convnet", "options": {"width": 32}}
DIGITS = tuple("0123456789")
COMMANDS = ("down", "go", "left", "no", "right", "stop", "up", "yes")

Size = Annotated[int, Field(ge=8, le=512, description="mel bands and points in time of a spectrogram, which is square")]
Rate = Annotated[int, Field(ge=1000, le=96_000, description="samples in a second; others are converted")]
Seconds = Annotated[
    float, Field(gt=0, le=60, description="length of a clip; longer ones are cut, silence follows shorter ones")
]


@ddbench.dataset(classes=DIGITS, sample_shape=(1, SIZE, SIZE), network=NETWORK, modality="sound", images_per_class=1)
def fsdd(root: Path, download: bool, *, size: Size = SIZE) -> Splits:
    """Free Spoken Digit Dataset: digits spoken by six people, 8 kHz (Jackson et al. 2018, CC BY-SA 4.0).

    Recordings 0 to 4 of each digit and speaker are the test split, as its authors say. A copy with fewer recordings
    than the original is ranked apart.
    """
    folder = root / "fsdd" / "recordings"
    url = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip"
    _obtain(folder, "fsdd", url, "*/recordings/*.wav", download)
    files = sorted(folder.glob("[0-9]_*_*.wav"))
    held_out = [int(file.stem.rsplit("_", 1)[1]) < 5 for file in files]
    train = [(file, int(file.name[0])) for file, test in zip(files, held_out, strict=True) if not test]
    test = [(file, int(file.name[0])) for file, test in zip(files, held_out, strict=True) if test]
    return load_clips(train, test, size=size, rate=8000, seconds=0.64)


@ddbench.dataset(classes=COMMANDS, sample_shape=(1, 64, 64), network=NETWORK, modality="sound", images_per_class=1)
def speech_commands(root: Path, download: bool, *, size: Size = 64) -> Splits:
    """Mini Speech Commands: 8000 clips of eight words, 16 kHz, 1 s (Warden 2018).

    Each eighth file of a word, by name, is a test clip, as for Kim et al. 2022 (IDC).
    """
    folder = root / "mini_speech_commands"
    url = "https://storage.googleapis.com/download.tensorflow.org/data/mini_speech_commands.zip"
    _obtain(folder, "speech_commands", url, "mini_speech_commands/*/*.wav", download)
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label, word in enumerate(COMMANDS):
        for number, file in enumerate(sorted((folder / word).glob("*.wav"))):
            (test if number % 8 == 7 else train).append((file, label))
    return load_clips(train, test, size=size, rate=16_000, seconds=1.0)


def load_clips(
    train: Sequence[tuple[Path, int]],
    test: Sequence[tuple[Path, int]],
    *,
    size: int,
    rate: int,
    seconds: float,
    notices: tuple[str, ...] = (),
) -> Splits:
    """Read the files of both splits, each with the number of its class, into clips of one rate and length.

    Raises `DdbenchError` for a file that cannot be read, and where a split has none.
    """
    samples, changes = round(rate * seconds), Counter[str]()
    clips = []
    for split, files in (("training", train), ("test", test)):
        if not files:
            raise DdbenchError(f"there are no {split} clips.", "Add files to that split.")
        clips.append(torch.from_numpy(np.stack([_clip(file, rate, samples, changes) for file, _ in files])))
    labels = [torch.tensor([label for _, label in files]) for files in (train, test)]
    total = len(train) + len(test)
    said = tuple(f"{count} of {total} {change}" for change, count in sorted(changes.items()))
    return sound_splits(
        clips[0], labels[0], clips[1], labels[1], rate=rate, bands=size, frames=size, notices=(*notices, *said)
    )


def _clip(path: Path, rate: int, samples: int, changes: Counter[str]) -> "np.ndarray[Any, Any]":
    """Return a file as `samples` int16 at `rate`; count in `changes` what was done to it."""
    own_rate, values = _read(path)
    if values.ndim == 2:
        if values.shape[1] > 1:
            changes["had several channels, which were averaged"] += 1
        values = values.mean(1)
    if own_rate != rate:
        from scipy.signal import resample_poly

        changes[f"were converted to {rate} samples a second"] += 1
        factor = gcd(own_rate, rate)
        values = resample_poly(values, rate // factor, own_rate // factor)
    if len(values) > samples:
        changes[f"were cut to {samples / rate:g} s"] += 1
    clip = np.zeros(samples, np.int16)
    clip[: len(values)] = np.rint(values[:samples].clip(-1, 1) * 32767)
    changes["are silent"] += int(not clip.any())
    if not changes["are silent"]:
        del changes["are silent"]
    return clip


def _read(path: Path) -> tuple[int, "np.ndarray[Any, Any]"]:
    """Return the rate of a file and its samples as floats in [-1, 1], `[n]` or `[n, channels]`.

    Raises `DdbenchError` for a file that is damaged or cut off, `MissingPrerequisite` for flac without its reader.
    """
    if path.suffix.lower() == ".flac":
        return _read_flac(path)
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)
            # Chunks with notes of other programs are no damage.
            warnings.filterwarnings("ignore", message="Chunk .non-data. not understood")
            rate, values = wavfile.read(path)
    except Exception as error:
        # A damaged file can make the reader raise any type of exception.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DdbenchError(f"{path} cannot be read as a wav file: {reason}.", "Remove or replace it.") from error
    if not len(values):
        raise DdbenchError(f"{path} holds no sound.", "Remove or replace it.")
    if values.dtype == np.uint8:
        return rate, values / 128.0 - 1
    if values.dtype.kind == "i":
        return rate, values / float(np.iinfo(values.dtype).max + 1)
    if not np.isfinite(values).all():
        raise DdbenchError(f"{path} has samples that are not finite.", "Remove or replace it.")
    return rate, values.astype(np.float64)


def _read_flac(path: Path) -> tuple[int, "np.ndarray[Any, Any]"]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingPrerequisite(
            f"{path} is a flac file, and its reader is not installed.", "pip install 'ddbench[sound]'"
        ) from error
    try:
        values, rate = soundfile.read(path)
    except Exception as error:
        raise DdbenchError(f"{path} cannot be read as a flac file.", "Remove or replace it.") from error
    return rate, values


def _obtain(folder: Path, name: str, url: str, pattern: str, download: bool) -> None:
    """Download and unpack the clips of a dataset where there is no folder of it.

    Raises `MissingPrerequisite` where that is not allowed or fails.
    """
    if folder.is_dir():
        return
    advice = f"Put its files into {folder}, or set DDBENCH_DATA."
    if not download:
        raise MissingPrerequisite(f"{name} is not in {folder}.", advice)
    depth = 1 if name == "fsdd" else 0
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked, contextlib.redirect_stdout(sys.stderr):
            archive = Path(unpacked) / "archive.zip"
            with urllib.request.urlopen(url, timeout=60) as stream, open(archive, "wb") as target:
                while block := stream.read(1 << 20):
                    target.write(block)
            with zipfile.ZipFile(archive) as packed:
                members = [m for m in packed.namelist() if Path(m).match(pattern)]
                packed.extractall(unpacked, members)
            first = Path(members[0])
            (Path(unpacked) / Path(*first.parts[: 1 + depth])).rename(folder)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingPrerequisite(f"{name} is not in {folder} and cannot be downloaded ({reason}).", advice) from error


@ddbench.hookimpl
def ddbench_datasets() -> list[object]:
    return [fsdd, speech_commands]
