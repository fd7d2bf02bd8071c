"""Sound: log-mel spectrograms of clips, and clips that sound like a spectrogram (Griffin and Lim 1984)."""

import io
import json
import re

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from ddbench.contract.component import modality
from ddbench.contract.examples import ExampleSet, ExamplesRequest, ImageSplits, Splits
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.errors import PluginError

RANGE = 80.0
"""Decibels below the loudest place of a clip that count as silence."""
ITERATIONS = 60
"""Iterations of Griffin and Lim."""
_PART = 1000
"""Clips that are transformed at a time."""


def sound_splits(
    train: Int16[Tensor, "n samples"],
    train_labels: Tensor,
    test: Int16[Tensor, "m samples"],
    test_labels: Tensor,
    *,
    rate: int,
    bands: int,
    frames: int,
    notices: tuple[str, ...] = (),
) -> Splits:
    """Return clips of one length and class numbers as a dataset of the modality `sound`.

    Args:
        train: samples of 16 bits, one channel.
        train_labels: the number of the class of each clip, int64.
        test: the test clips.
        test_labels: the number of the class of each.
        rate: samples in a second.
        bands: mel bands, the height of a spectrogram.
        frames: points in time, the width of a spectrogram.
        notices: what the source has to say.
    """
    facts = {"rate": rate, "samples": train.shape[1], "bands": bands, "frames": frames}
    return Splits(train, train_labels, test, test_labels, notices=notices, metadata={"sound": json.dumps(facts)})


def spectrograms(
    clips: Float[Tensor, "n samples"], rate: int, bands: int, frames: int
) -> Float[Tensor, "n 1 bands frames"]:
    """Return log-mel spectrograms in decibels relative to the loudest place of each clip, at least -80.

    Frame t is centred at sample t * hop, hop = ceil(samples / frames); the window is Hann's, of twice a hop or more. A
    silent clip is -80 everywhere.
    """
    hop, size = _windows(clips.shape[1], frames)
    bank = mel_bank(rate, size, bands)
    power = _stft(clips, size, hop)[..., :frames].abs().square()
    mel = torch.einsum("bf,nft->nbt", bank, power)
    loudest = mel.amax((1, 2), keepdim=True)
    relative = 10 * torch.log10((mel / loudest.clamp_min(1e-12)).clamp_min(10 ** (-RANGE / 10)))
    return relative[:, None]


def clips_like(decibels: Float[Tensor, "n 1 bands frames"], rate: int, samples: int) -> Float[Tensor, "n samples"]:
    """Return clips whose spectrograms are near the given ones, the loudest sample of each at 0.9.

    Mel bands become frequencies by the pseudo-inverse of the filters, cut at zero. Phases start at random, always the
    same, and are made consistent by iterated projections (Griffin and Lim 1984, equation 6).
    """
    bands, frames = decibels.shape[2:]
    hop, size = _windows(samples, frames)
    mel = 10 ** (decibels[:, 0].clamp(max=20) / 10)
    mel = torch.where(decibels[:, 0] <= -RANGE + 1, torch.zeros_like(mel), mel)
    power = (torch.linalg.pinv(mel_bank(rate, size, bands)) @ mel).clamp_min(0)
    magnitude = torch.cat([power.sqrt(), power.new_zeros(len(power), power.shape[1], 1)], 2)
    generator = torch.Generator().manual_seed(0)
    phase = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator)
    window, length = torch.hann_window(size), hop * frames
    clips = torch.zeros(len(power), length)
    for _ in range(ITERATIONS):
        clips = torch.istft(torch.polar(magnitude, phase), size, hop, size, window, length=length)
        phase = _stft(clips, size, hop)[..., : frames + 1].angle()
    clips = clips[:, :samples]
    return 0.9 * clips / clips.abs().amax(1, keepdim=True).clamp_min(1e-9)


def mel_bank(rate: int, size: int, bands: int) -> Float[Tensor, "bands frequencies"]:
    """Return triangular filters on frequencies, evenly spaced in mel (2595 log10(1 + f / 700)), each of sum 1.

    A filter that is narrower than a frequency takes the nearest one.
    """
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, bands + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, size // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)).clip(0)
    for filter_, middle in zip(filters, centre[:, 0], strict=True):
        if not filter_.any():
            filter_[np.abs(frequencies - middle).argmin()] = 1
    return torch.from_numpy(filters / filters.sum(1, keepdims=True)).float()


def _windows(samples: int, frames: int) -> tuple[int, int]:
    """Return the hop between frames and the length of the window, a power of two."""
    hop = -(-samples // frames)
    return hop, 1 << (2 * hop - 1).bit_length()


def _stft(clips: Tensor, size: int, hop: int) -> Tensor:
    return torch.stft(clips, size, hop, size, torch.hann_window(size), pad_mode="constant", return_complex=True)


def hear(distilled: DistilledSet) -> Presentation:
    """Return the spectrograms of a set as pictures, low frequencies at the bottom, and as clips to play."""
    from scipy.io import wavfile

    metadata, inputs = distilled.metadata, distilled.flat()[0]
    facts = json.loads(metadata["sound"])
    mean, std = (inputs.new_tensor(json.loads(metadata[name])).view(-1, 1) for name in ("band_mean", "band_std"))
    decibels = inputs * std + mean
    # Decibels below the loudest place, as those of real clips: learned values may go beyond.
    decibels = decibels - decibels.amax((1, 2, 3), keepdim=True)
    pixels = ((decibels.flip(2) + RANGE) / RANGE).clamp(0, 1)
    classes = json.loads(metadata.get("classes", "[]"))
    targets = distilled.targets().flatten(0, 1)
    files: dict[str, bytes] = {}
    for number, (clip, target) in enumerate(
        zip(clips_like(decibels, facts["rate"], facts["samples"]), targets, strict=True)
    ):
        label = int(target.argmax()) if target.dim() else int(target)
        name = re.sub(r"\W+", "_", classes[label]) if label < len(classes) else str(label)
        buffer = io.BytesIO()
        wavfile.write(buffer, facts["rate"], (clip * 32767).round().to(torch.int16).numpy())
        files[f"sounds/{number:03d}-{name}.wav"] = buffer.getvalue()
    return Presentation(pixels=pixels, files=files)


def few_tones(generator: torch.Generator) -> Splits:
    """Return a few tones in noise, as an example of this modality."""
    hertz, labels = torch.tensor([[300.0], [900.0]] * 4), torch.arange(8) % 2
    tones = torch.sin(2 * torch.pi * hertz * torch.arange(1600) / 8000)
    noise = 0.1 * torch.randn(8, 1600, generator=generator)
    clips = (8000 * (tones + noise)).round().to(torch.int16)
    return sound_splits(clips[:4], labels[:4], clips[4:], labels[4:], rate=8000, bands=8, frames=8)


@modality(present=hear, example=few_tones, augmentations=("crop", "cutout"))
def sound(splits: Splits | ImageSplits, request: ExamplesRequest) -> tuple[ExampleSet, ExampleSet]:
    """Clips as log-mel spectrograms [1, bands, frames], normalised per band by the training split."""
    request.refuse_image_settings()
    if not isinstance(splits, Splits) or splits.train_inputs.dtype != torch.int16 or splits.train_inputs.dim() != 2:
        raise PluginError(
            f"{request.name} holds sound and gives no samples of 16 bits.",
            "Return ddbench.modalities.sound_splits(...).",
        )
    facts = json.loads(splits.metadata["sound"])

    def transform(clips: Tensor) -> Tensor:
        parts = torch.split(clips, _PART)
        return torch.cat([spectrograms(part / 32768, facts["rate"], facts["bands"], facts["frames"]) for part in parts])

    train, test = transform(splits.train_inputs), transform(splits.test_inputs)
    mean, std = train.mean((0, 1, 3)), train.std((0, 1, 3)).clamp_min(1e-6)
    metadata = {"band_mean": json.dumps(mean.tolist()), "band_std": json.dumps(std.tolist())}
    mean_, std_ = mean.view(-1, 1), std.view(-1, 1)
    return request.examples(splits, (train - mean_) / std_, (test - mean_) / std_, metadata=metadata)
