"""The machine that a figure was measured on: versions, device, threads and memory."""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.errors import MissingPrerequisite, UsageError
from ddbench.machine import processes

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> "torch.device":
    """Return the device called `name`; `auto` is an accelerator where there is one, else the CPU.

    Raises `MissingPrerequisite` for a device that this machine does not have, `UsageError` for an unknown name.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and processes.started():
        name = f"cuda:{processes.local_rank() % max(1, torch.cuda.device_count())}"
    try:
        if name.startswith("meta"):
            raise RuntimeError("holds no data")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = name.split(":")[0] in {"cpu", "cuda", "mps", "xpu"}
        hint = "Use --device cpu, or --device auto for the best available."
        if known:
            raise MissingPrerequisite(f"device {name!r} is not available on this machine.", hint) from error
        raise UsageError(f"there is no device called {name!r}.", hint) from error
    return device


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Multiply and convolve in `name` on CUDA within a `with` block: `float32` or `tf32`.

    By default torch convolves in TF32 where the card can, and multiplies matrices in float32.
    """
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def peak_memory_mb() -> float:
    """Return the peak memory of this process so far, in MB (10^6 bytes)."""
    try:
        # Not getrusage: on Linux it starts from the peak of the parent process.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def forget_peak_memory() -> None:
    """Begin `peak_memory_mb` anew from what is in use now, so that one run of several has a peak of its own.

    Where the system cannot, the peak stays that of the whole process.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
        # From proc(5): 5 resets the peak resident set size of the process.
        Path("/proc/self/clear_refs").write_text("5")


def machine_class(environment: Mapping[str, str]) -> str:
    """Return what decides the speed of a machine, roughly: `cpu, 2 threads`, or the name of an accelerator."""
    device = environment.get("device", "")
    return f"cpu, {environment.get('threads', '?')} threads" if device == "cpu" else device


def free_memory(device: "torch.device") -> int:
    """Return the bytes that can still be allocated on `device` without swapping.

    Where the system does not report them, return half of all memory.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for later allocations, for the rest of this process.

    By default glibc returns each large block to the system and gets it back page by page, cleared. For tensors of a
    few MB that are allocated thousands of times, this can cost as much as the arithmetic.

    This changes the whole process, so only programs call it: the command line and the benchmarks. Library functions
    such as `ddbench.run` must not, because the process belongs to their caller. Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # From malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, and M_MMAP_MAX, the number of blocks outside the heap. Not
    # M_MMAP_THRESHOLD: its maximum is 32 MB, and the first layer of a ConvNet on 100 images has 52 MB.
    for option, value in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-4, 0)):
        mallopt(option, value)


@functools.cache
def git_commit() -> str:
    """Return the commit of the working tree that this package lies in, with `+changed` where files were edited.

    Return `""` where git does not track this package.
    """
    here = Path(__file__)

    def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)

    try:
        # In a virtual environment inside another project, the commit would be that project's.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return ""
        return git("describe", "--always", "--abbrev=12", "--dirty=+changed", "--exclude=*").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def describe(device: "torch.device") -> dict[str, str]:
    """Return the facts that a reader needs to judge a figure or a time measured on this machine."""
    import torch

    return {
        "ddbench": metadata.version("ddbench"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
