"""Images a second from a folder, and memory at many images, against torchvision's ImageFolder with a DataLoader.

    python benchmarks/folders.py --folder data/imagenette --size 64
    python benchmarks/folders.py --folder data/imagenette --counts 1000 200000

Each case runs in a process of its own. Folders of more images than there are hold links to the same files. Memory is
the peak of the process beyond that after the imports; workers of a DataLoader are processes, whose memory is not in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, BATCHES = 64, 10


def linked(source: Path, count: int, target: Path) -> Path:
    """Make a folder of `count` training images and one test image a class, links to the files of `source`."""
    classes = sorted(folder.name for folder in (source / "train").iterdir() if folder.is_dir())
    for name in classes:
        for split in ("train", "val"):
            (target / split / name).mkdir(parents=True)
        files = sorted((source / "train" / name).iterdir())
        for number in range(count // len(classes)):
            file = files[number % len(files)].resolve()
            (target / "train" / name / f"{number:07d}{file.suffix}").symlink_to(file)
        (target / "val" / name / files[0].name).symlink_to(files[0].resolve())
    return target


def read(by: str, folder: Path, size: int, workers: int) -> dict[str, float]:
    """Read some batches; return seconds to start, images a second, and the peak of memory in MB."""
    import torch
    import torchvision
    from torchvision.transforms import v2

    from ddbench.builtin import folders

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, began = peak(), time.perf_counter()
    if by == "ddbench":
        # The workers are as many threads as the DataLoader has processes.
        os.cpu_count = lambda: workers  # type: ignore[assignment]
        folders.IN_MEMORY = 0
        splits = folders.load(folder, folders.indexed(folder), size, False)
        order = torch.randperm(len(splits.train_labels), generator=torch.Generator().manual_seed(0))
        batches = (splits.train_images.pixels(part) for part in torch.split(order, BATCH))
    else:
        resize = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
        examples = torchvision.datasets.ImageFolder(str(folder / "train"), resize)
        shuffled = torch.utils.data.DataLoader(examples, BATCH, shuffle=True, num_workers=workers)
        batches = (images for images, _ in shuffled)
    next(batches)
    started = time.perf_counter() - began
    began, count = time.perf_counter(), 0
    for _, images in zip(range(BATCHES), batches, strict=False):
        count += len(images)
    seconds = time.perf_counter() - began
    return {"seconds to start": started, "images a second": count / seconds, "MB": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("data/imagenette"))
    parser.add_argument("--counts", type=int, nargs="*", default=[1000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(read(arguments.case, arguments.folder, arguments.size, arguments.workers)))
        return
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as place:
            folder = linked(arguments.folder, count, Path(place))
            # The index is made in the first case and kept for the second.
            for case in ("ddbench", "ddbench", "ImageFolder"):
                command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
                command += ["--size", str(arguments.size), "--workers", str(arguments.workers)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                figures = json.loads(output.splitlines()[-1])
                print(f"{count:>8} {case:<12}", *(f"{name} {value:.4g}" for name, value in figures.items()), sep="  ")


if __name__ == "__main__":
    main()
