"""The machine a number was made on: versions, device, threads, seeds, memory, folders."""

import ctypes
import functools
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ddbench.errors import MissingPrerequisite, UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> "torch.device":
    """The device called `name`; `auto` takes an accelerator when there is one, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name.startswith("meta"):
            raise RuntimeError("holds no data")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = name.split(":")[0] in {"cpu", "cuda", "mps", "xpu"}
        hint = "Use --device cpu, or --device auto to take what there is."
        if known:
            raise MissingPrerequisite(f"device {name!r} is not available on this machine.", hint) from error
        raise UsageError(f"there is no device called {name!r}.", hint) from error
    return device


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    try:
        # getrusage would count the process that started this one too.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def free_memory(device: "torch.device") -> int:
    """Bytes that may still be taken on `device`: what the system could give without swapping, or half of all it has."""
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
    """Let the C library keep what is freed for what is allocated next, from now on in this process.

    By default glibc gives every large block back to the system and gets it back page by page, cleared: for tensors of
    a few MB that are made and let go thousands of times, this can cost as much as the arithmetic. Nothing happens where
    there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # Of malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX, the number of blocks that may lie outside of the heap: a
    # threshold for them takes no more than 32 MB, and the first layer of a ConvNet on 100 images has 52.
    for option, value in ((-1, 2**31 - 1), (-2, 64 * 2**20), (-4, 0)):
        mallopt(option, value)


@functools.cache
def git_commit() -> str:
    """The commit of the working tree that tracks this package, `+changed` when edited, or `""` outside of one."""
    here = Path(__file__)

    def git(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)

    try:
        # Installed into a folder inside somebody's own project, the commit would be theirs.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return ""
        return git("describe", "--always", "--abbrev=12", "--dirty=+changed", "--exclude=*").stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def describe(device: "torch.device") -> dict[str, str]:
    """What a reader needs to know of the machine to judge a number or a time measured on it."""
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
