"""The one place where failures become text and an exit code, and where JSON is printed."""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ddbench.errors import DdbenchError, UsageError

INTERRUPTED = 130
UNEXPECTED = 1


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@contextmanager
def failures_told(*, as_json: bool = False, verbose: bool = False) -> Iterator[None]:
    """Turn a `DdbenchError` (or Ctrl-C) into a sentence, a hint and an exit code; no traceback without `verbose`.

    With `as_json` the same goes to stdout as a document with `status`, `reason`, `hint` and `exit_code`.
    """
    try:
        yield
    except DdbenchError as error:
        status = {INTERRUPTED: "interrupted", UsageError.exit_code: "usage"}.get(error.exit_code, "failed")
        _tell(error, status, error.message, error.hint, error.exit_code, as_json, verbose)
    except KeyboardInterrupt as error:
        _tell(error, "interrupted", "interrupted.", "", INTERRUPTED, as_json, verbose)
    except MemoryError as error:
        hint = "Lower the batch sizes or images per class, or choose a smaller network."
        _tell(error, "failed", "the machine ran out of memory.", hint, UNEXPECTED, as_json, verbose)
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        what = f"ddbench met a fault of its own: {type(error).__name__}: {error}"
        _tell(
            error, "failed", what, "Please report it with the output of `ddbench -v ...`.", UNEXPECTED, as_json, verbose
        )


def _tell(error: BaseException, status: str, message: str, hint: str, code: int, as_json: bool, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
    if as_json:
        print_json({"status": status, "reason": message, "hint": hint, "exit_code": code})
    sys.stderr.write(f"Error: {message}\n" + (f"  {hint}\n" if hint else ""))
    raise typer.Exit(code)
