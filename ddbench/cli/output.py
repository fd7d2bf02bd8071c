"""The one place where failures become text and an exit code, and where JSON is printed."""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ddbench.errors import DdbenchError, Interrupted, UsageError

_STDOUT = sys.stdout


def print_json(document: Any) -> None:
    """One JSON document on stdout, whoever has borrowed it."""
    _STDOUT.write(json.dumps(document, indent=2) + "\n")


@contextmanager
def failures_told(*, as_json: bool = False, verbose: bool = False) -> Iterator[None]:
    """Turn a `DdbenchError` (or Ctrl-C) into a sentence, a hint and an exit code; no traceback without `verbose`.

    With `as_json`, stdout is kept for the one document: what plugins print goes to stderr, and a failure is a document
    too, with `status`, `reason`, `hint`, `exit_code` and whatever the run had reached.
    """
    borrowed = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with borrowed:
            yield
    except DdbenchError as error:
        _tell(error, error, as_json, verbose)
    except KeyboardInterrupt as error:
        _tell(error, Interrupted("interrupted."), as_json, verbose)
    except MemoryError as error:
        advice = "Lower the batch sizes or images per class, or choose a smaller network."
        _tell(error, DdbenchError("the machine ran out of memory.", advice), as_json, verbose)
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        what = f"ddbench met a fault of its own: {type(error).__name__}: {error}"
        _tell(error, DdbenchError(what, "Please report it with the output of `ddbench -v ...`."), as_json, verbose)


def _tell(cause: BaseException, error: DdbenchError, as_json: bool, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(cause)
    if as_json:
        reached = error.result.model_dump(mode="json") if error.result else {}
        status = {Interrupted: "interrupted", UsageError: "usage"}.get(type(error), "failed")
        told = {"status": status, "reason": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print_json({**reached, **told})
    sys.stderr.write(f"Error: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
    raise typer.Exit(error.exit_code)
