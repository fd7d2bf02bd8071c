"""Calls of hooks and observers: with the arguments that they name, traced on request, failures described briefly."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pluggy

from ddbench.errors import DdbenchError

_HERE = str(Path(__file__).parent) + os.sep


def traced() -> bool:
    """Return True if `DDBENCH_TRACE` asks for a line on stderr per call."""
    return os.environ.get("DDBENCH_TRACE", "") not in ("", "0")


@contextlib.contextmanager
def trace(plugin: str, call: str) -> Iterator[None]:
    """Print a line on stderr with the seconds that the body took, and the exception it raised; only if `traced()`."""
    if not traced():
        yield
        return
    started, end = time.monotonic(), ""
    try:
        yield
    except BaseException as error:
        end = f"  raised {brief(error)}"
        raise
    finally:
        sys.stderr.write(f"{time.monotonic() - started:8.3f} s  {plugin} {call}{end}\n")


def hook_name(hook: pluggy.HookImpl) -> str:
    """Return the name of the hook that a function implements."""
    return hook.function.__name__


def call(hook: pluggy.HookImpl, **arguments: Any) -> Any:
    """Call a hook with the arguments that its function names, so that plugins for an older contract work."""
    with trace(hook.plugin_name.split("#")[0], hook_name(hook)):
        return hook.function(*[arguments[name] for name in hook.argnames])


def brief(error: BaseException) -> str:
    """Return an exception in one line: type and first line, or message and hint of an error of ddbench."""
    if isinstance(error, DdbenchError):
        return f"{error.message} {error.hint}".strip()
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where(error: BaseException) -> str:
    """Return the last line of a plugin that an exception passed, in brackets, or an empty text."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_HERE, "<"))]
    frames = [f for f in frames if "importlib" not in f.filename]
    if isinstance(error, DdbenchError) or not frames:
        return ""
    file = Path(frames[-1].filename)
    name = f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name
    return f" ({name}, line {frames[-1].lineno})"
