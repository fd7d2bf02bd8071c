"""Files in the layouts of the field's releases, written as their authors' code writes them."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddbench import DatasetInfo


class Code:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self) -> object:
        return print, ("run",)


def condensation(path: Path, images: Tensor, labels: Tensor, name: str = "res_DC_digits_ConvNet_1ipc.pt") -> Path:
    accuracies = [np.float64(0.5), np.float32(0.5), np.array([0.5]), np.bool_(True), np.str_("a")]
    torch.save({"data": [[images, labels]], "accs_all_exps": {"ConvNet": accuracies}}, path / name)
    return path / name


def trajectories(path: Path, images: Tensor, labels: Tensor, rate: float | None = None) -> Path:
    path.mkdir(exist_ok=True)
    torch.save(images.requires_grad_(), path / "images_best.pt")
    torch.save(labels, path / "labels_best.pt")
    if rate is not None:
        torch.save(torch.tensor(rate), path / "lr_best.pt")
    return path


def pair(path: Path, images: Tensor, labels: Tensor) -> Path:
    torch.save([images, labels], path / "data.pt")
    return path / "data.pt"


def kernel(path: Path, images: Tensor, labels: Tensor, *, learned: bool = False, name: str = "nozca_nol") -> Path:
    onehot = F.one_hot(labels, 10).float() - 0.1
    targets = onehot * 1.3 if learned else onehot
    file = path / f"ConvNet_ssize10_{name}_noaug_ckpt1000.npz"
    np.savez(file, images=images.permute(0, 2, 3, 1).numpy(), labels=targets.numpy())
    return file


def features(path: Path, images: Tensor, labels: Tensor) -> Path:
    targets = (F.one_hot(labels, 10).float() - 0.1) / 1.3
    np.savez(path / "step000100.npz", image=images.permute(0, 2, 3, 1).numpy(), label=targets.numpy())
    return path / "step000100.npz"


def unrolled(path: Path, images: Tensor, labels: Tensor, rates: Tensor) -> Path:
    """Write `images [steps, n, ...]` and `rates [epochs, steps]`, every batch again in each epoch."""
    steps = [
        (images[i].clone(), labels[i].clone(), rate.reshape(1).requires_grad_())
        for epoch in rates
        for i, rate in enumerate(epoch)
    ]
    torch.save(steps, path / "results.pth")
    return path / "results.pth"


def rows(path: Path, images: Tensor, labels: Tensor, *, hdf5: bool = False, learned: bool = True) -> Path:
    flat, targets = images.flatten(1), F.one_hot(labels, 10).float() * 1.2 - 0.1
    if hdf5:
        import h5py

        with h5py.File(path / "set.h5", "w") as file:
            file["data"], file["epoch"] = flat.numpy(), 10
            if learned:
                file["label"] = targets.numpy()
        return path / "set.h5"
    content = {"model_state_dict": {"module.data.weight": flat}, "epoch": 3}
    torch.save({**content, **({"label_state_dict": {"weight": targets}} if learned else {})}, path / "set.pth")
    return path / "set.pth"


FOLDERS: dict[str, Callable[[int, int, str], str]] = {
    "sre2l": lambda label, i, name: f"new{label:03d}/class{label:03d}_id{i:03d}.png",
    "rded": lambda label, i, name: f"{label:05d}/class{label:05d}_id{i:05d}.png",
    "d4m": lambda label, i, name: f"{label}/{label}-image{i}{i}.png",
    "folder": lambda label, i, name: f"{name}/{i}.png",
}


def folders(path: Path, images: Tensor, labels: Tensor, info: DatasetInfo, layout: str) -> Path:
    """Write normalised images as pictures, numbered within their class."""
    pixels = (info.pixels(images) * 255).round().clamp(0, 255).to(torch.uint8)
    counts = [0] * len(info.classes)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        file = path / FOLDERS[layout](label, counts[label], info.classes[label])
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(0).numpy()).save(file)
        counts[label] += 1
    return path


def malicious(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"data": [[Code(), Code()]]}))
    return path
