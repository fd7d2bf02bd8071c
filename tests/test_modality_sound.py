"""Sound: spectrograms of clips, clips from spectrograms, and what may be wrong with files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from ddbench.builtin.sound import load_clips
from ddbench.contract.examples import ExamplesRequest, Splits
from ddbench.contract.sets import DistilledSet
from ddbench.errors import DdbenchError, MissingPrerequisite, PluginError
from ddbench.modalities import clips_like, sound_splits, spectrograms
from ddbench.modalities.sound import hear, mel_bank, sound

RATE = 8000
REQUEST = ExamplesRequest("toy", ("low", "high"), "sound", ("crop", "cutout"))


def tone(hertz: float, samples: int = 4000, rate: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / rate)


def as_int16(clip: torch.Tensor) -> torch.Tensor:
    return (clip * 32767).round().to(torch.int16)


def splits() -> Splits:
    clips = torch.stack([as_int16(tone(hertz)) for hertz in (300, 330, 2500, 2600)])
    labels = torch.tensor([0, 0, 1, 1])
    return sound_splits(clips, labels, clips[::2], labels[::2], rate=RATE, bands=16, frames=16)


def test_a_tone_stands_in_its_band():
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), 18) / 2595) - 1)
    for hertz in (300, 1000, 2500):
        shown = spectrograms(tone(hertz)[None], RATE, 16, 16)
        assert shown.shape == (1, 1, 16, 16)
        loudest = int(shown[0, 0, :, 8].argmax())
        assert edges[loudest] < hertz < edges[loudest + 2]
        assert float(shown.max()) == pytest.approx(0, abs=1e-5) and float(shown.min()) >= -80.001


def test_loudness_does_not_matter_and_silence_is_the_floor():
    clip = tone(700)[None]
    assert torch.allclose(spectrograms(clip, RATE, 16, 16), spectrograms(clip / 10, RATE, 16, 16), atol=1e-3)
    assert torch.equal(spectrograms(torch.zeros(1, 4000), RATE, 16, 16), torch.full((1, 1, 16, 16), -80.0))


def test_filters_cover_every_band():
    bank = mel_bank(8000, 64, 40)  # more bands than the low frequencies have
    assert torch.allclose(bank.sum(1), torch.ones(40)) and (bank >= 0).all()


def test_a_clip_is_heard_again():
    clips = torch.stack([tone(300), tone(2500)])
    before = spectrograms(clips, RATE, 16, 16)
    again = clips_like(before, RATE, 4000)
    assert again.shape == (2, 4000)
    assert again.abs().amax(1).tolist() == pytest.approx([0.9, 0.9])
    # The dominant frequency of what is heard is near that of the tone: within its band.
    for clip, hertz in zip(again, (300, 2500), strict=True):
        peak = int(torch.fft.rfft(clip).abs().argmax()) * RATE / 4000
        assert abs(peak - hertz) < 0.25 * hertz
    loud = before > -20
    assert (spectrograms(again, RATE, 16, 16) - before)[loud].abs().mean() < 6


def test_examples_are_normalised_per_band_and_presented():
    train, test = sound(splits(), REQUEST)
    assert train.info.sample_shape == (1, 16, 16) and train.info.augmentations == ("crop", "cutout")
    assert train.inputs.mean((0, 1, 3)).abs().max() < 1e-4
    assert torch.allclose(test.inputs, train.inputs[::2])
    metadata = {**train.info.metadata, "classes": '["low", "high pitch"]'}
    shown = hear(DistilledSet(train.inputs[None], train.labels[None], metadata=metadata))
    assert shown.pixels is not None and shown.pixels.shape == (4, 1, 16, 16)
    # Low frequencies are at the bottom of a picture.
    assert int(shown.pixels[0, 0, :, 8].argmax()) > int(shown.pixels[2, 0, :, 8].argmax())
    assert list(shown.files)[2:] == ["sounds/002-high_pitch.wav", "sounds/003-high_pitch.wav"]
    rate, samples = wavfile.read(io.BytesIO(shown.files["sounds/000-low.wav"]))
    assert rate == RATE and samples.dtype == np.int16 and len(samples) == 4000 and samples.any()


def test_the_hash_is_that_of_clips_and_settings():
    assert splits().content_hash() == splits().content_hash()
    other = splits()
    other.train_inputs[0, 0] += 1
    assert other.content_hash() != splits().content_hash()
    clips, labels = splits().train_inputs, splits().train_labels
    assert (
        sound_splits(clips, labels, clips[::2], labels[::2], rate=RATE, bands=8, frames=16).content_hash()
        != splits().content_hash()
    )


def test_what_is_no_sound_is_refused():
    labels = torch.tensor([0, 1])
    with pytest.raises(PluginError, match="gives no samples of 16 bits"):
        sound(Splits(torch.zeros(2, 4), labels, torch.zeros(2, 4), labels), REQUEST)


def test_files_of_any_kind_become_clips_of_one_rate_and_length(tmp_path: Path):
    clip = tone(500, 4000).numpy()
    written = {
        "plain": (RATE, (clip * 32767).astype(np.int16)),
        "bytes": (RATE, ((clip + 1) * 127.5).astype(np.uint8)),
        "float": (RATE, clip.astype(np.float32)),
        "wide": (RATE, (clip * (2**31 - 1)).astype(np.int32)),
        "stereo": (RATE, np.stack([clip * 32767] * 2, 1).astype(np.int16)),
        "fast": (2 * RATE, (tone(500, 8000, 2 * RATE).numpy() * 32767).astype(np.int16)),
        "long": (RATE, (tone(500, 9000).numpy() * 32767).astype(np.int16)),
        "short": (RATE, (clip[:1000] * 32767).astype(np.int16)),
        "silent": (RATE, np.zeros(4000, np.int16)),
    }
    for name, (rate, samples) in written.items():
        wavfile.write(tmp_path / f"{name}.wav", rate, samples)
    files = [(tmp_path / f"{name}.wav", i % 2) for i, name in enumerate(written)]
    loaded = load_clips(files, files[:1], size=16, rate=RATE, seconds=0.5)
    assert loaded.train_inputs.shape == (9, 4000) and loaded.train_inputs.dtype == torch.int16
    by_name = dict(zip(written, loaded.train_inputs.float() / 32767, strict=True))
    for name in ("plain", "float", "wide", "stereo", "long"):
        assert (by_name[name] - tone(500)).abs().max() < 2e-3, name
    assert (by_name["bytes"] - tone(500)).abs().max() < 2e-2
    assert (by_name["fast"] - tone(500))[100:-100].abs().max() < 2e-2
    assert not by_name["short"][1000:].any() and not by_name["silent"].any()
    assert loaded.notices == (
        "1 of 10 are silent",
        "1 of 10 had several channels, which were averaged",
        "1 of 10 were converted to 8000 samples a second",
        "1 of 10 were cut to 0.5 s",
    )
    assert json.loads(loaded.metadata["sound"]) == {"rate": RATE, "samples": 4000, "bands": 16, "frames": 16}


def test_damaged_files_are_named(tmp_path: Path):
    whole = tmp_path / "whole.wav"
    wavfile.write(whole, RATE, as_int16(tone(500)).numpy())
    raw = whole.read_bytes()
    for name, content in {"cut": raw[:3000], "head": raw[:20], "text": b"hello", "empty": b""}.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(content)
        with pytest.raises(DdbenchError, match=f"{name}.wav cannot be read as a wav file"):
            load_clips([(path, 0)], [(whole, 0)], size=16, rate=RATE, seconds=0.5)
    wavfile.write(tmp_path / "none.wav", RATE, np.zeros(0, np.int16))
    with pytest.raises(DdbenchError, match="none.wav holds no sound"):
        load_clips([(tmp_path / "none.wav", 0)], [(whole, 0)], size=16, rate=RATE, seconds=0.5)
    wavfile.write(tmp_path / "nan.wav", RATE, np.full(10, np.nan, np.float32))
    with pytest.raises(DdbenchError, match="not finite"):
        load_clips([(tmp_path / "nan.wav", 0)], [(whole, 0)], size=16, rate=RATE, seconds=0.5)
    with pytest.raises(DdbenchError, match="no test clips"):
        load_clips([(whole, 0)], [], size=16, rate=RATE, seconds=0.5)


def test_flac_without_its_reader_is_a_missing_prerequisite(tmp_path: Path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    with pytest.raises(MissingPrerequisite, match="flac file, and its reader is not installed"):
        load_clips([(tmp_path / "x.flac", 0)], [(tmp_path / "x.flac", 0)], size=16, rate=RATE, seconds=0.5)


def recordings(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(path, RATE, as_int16(tone(300 + 50 * number, 800)).numpy())


def test_datasets_by_name_split_as_their_authors_say(catalog, tmp_path: Path):
    digits = [
        f"{digit}_{speaker}_{index}.wav" for digit in range(10) for speaker in ("ann", "bob") for index in (0, 4, 5)
    ]
    recordings(tmp_path / "fsdd" / "recordings", digits)
    loaded = catalog.get("dataset", "fsdd").call({"size": 8}, tmp_path, False)
    # Recordings 0 to 4 are the test split.
    assert torch.bincount(loaded.train_labels).tolist() == [2] * 10
    assert torch.bincount(loaded.test_labels).tolist() == [4] * 10
    words = catalog.get("dataset", "speech_commands").facts["classes"]
    recordings(tmp_path / "mini_speech_commands", [f"{word}/{number}.wav" for word in words for number in range(8)])
    loaded = catalog.get("dataset", "speech_commands").call({"size": 8}, tmp_path, False)
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (56, 8)
    assert "64 of 64 were converted to 16000 samples a second" in loaded.notices


def test_a_missing_dataset_is_downloaded_and_unpacked(catalog, tmp_path: Path, monkeypatch):
    import zipfile

    packed = io.BytesIO()
    recordings(tmp_path / "made", [f"{digit}_ann_{index}.wav" for digit in range(10) for index in (0, 5)])
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("free-spoken-digit-dataset-master/README.md", "not needed")
        for path in sorted((tmp_path / "made").iterdir()):
            archive.write(path, f"free-spoken-digit-dataset-master/recordings/{path.name}")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(packed.getvalue()))
    loaded = catalog.get("dataset", "fsdd").call({"size": 8}, tmp_path / "data", True)
    assert len(loaded.train_labels) == 10
    assert sorted(path.name for path in (tmp_path / "data" / "fsdd").iterdir()) == ["recordings"]

    def offline(url: str, timeout: float) -> io.BytesIO:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(MissingPrerequisite, match=r"cannot be downloaded \(no route to host\)"):
        catalog.get("dataset", "speech_commands").call({}, tmp_path / "data", True)
    with pytest.raises(MissingPrerequisite, match="speech_commands is not in"):
        catalog.get("dataset", "speech_commands").call({}, tmp_path / "data", False)
