"""The one place where failures and warnings become text, failures an exit code, and where JSON is printed."""

import contextlib
import json
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import typer

from ddbench.errors import DdbenchError, Interrupted, UnknownFields, Unsupported, UsageError

_document: ContextVar[TextIO | None] = ContextVar("_document", default=None)
"""The stream of the JSON document while stdout is redirected."""


def print_json(document: Any) -> None:
    """Print one JSON document on stdout, also while `explained_failures` redirects other output to stderr."""
    (_document.get() or sys.stdout).write(json.dumps(document, indent=2) + "\n")


@dataclass
class Attempt:
    """The work of a command: the folder of its run, once there is one."""

    run_dir: Path | None = None

    def record(self) -> dict[str, Any]:
        """Return the record that the run left in its folder, in the current version; empty where there is none."""
        if self.run_dir is None:
            return {}
        from ddbench.records.result import RunFolder

        try:
            result = RunFolder(self.run_dir).read_result()
        except DdbenchError:
            return {}
        return {} if result is None else result.document()


@contextmanager
def explained_failures(*, as_json: bool = False, verbose: bool = False) -> Iterator[Attempt]:
    """Turn a `DdbenchError` (or Ctrl-C) into a sentence, a hint and an exit code; no traceback without `verbose`.

    Warnings of fields that are not known are printed on stderr, each once.

    With `as_json`, stdout is kept for one document: other output goes to stderr, and a failure is a document too, with
    `status`, `reason`, `hint`, `exit_code` and the fields of the record in the run's folder, if the command names it.
    """
    redirected = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    token, attempt = _document.set(sys.stdout), Attempt()
    with _warnings_once():
        try:
            with redirected:
                yield attempt
        except DdbenchError as error:
            _exit(error, error, attempt, as_json, verbose)
        except KeyboardInterrupt as error:
            _exit(error, Interrupted("interrupted."), attempt, as_json, verbose)
        except MemoryError as error:
            advice = "Lower the batch sizes or images per class, or choose a smaller network."
            _exit(error, DdbenchError("the machine ran out of memory.", advice), attempt, as_json, verbose)
        except (typer.Exit, BrokenPipeError):
            raise
        except Exception as error:
            what = f"this is an error in ddbench: {type(error).__name__}: {error}"
            hint = "Please report it with the output of `ddbench -v ...`."
            _exit(error, DdbenchError(what, hint), attempt, as_json, verbose)
        finally:
            _document.reset(token)


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Print each warning of `UnknownFields` once, as a sentence, wherever in ddbench it comes from."""
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnknownFields)
        show = warnings.showwarning

        def once(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is not UnknownFields:
                show(message, category, *place, **more)
            elif str(message) not in seen:
                seen.add(str(message))
                sys.stderr.write(f"Warning: {message}\n")

        warnings.showwarning = once
        yield


def _exit(cause: BaseException, error: DdbenchError, attempt: Attempt, as_json: bool, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(cause)
    if as_json:
        status = {Interrupted: "interrupted", UsageError: "usage", Unsupported: "skipped"}.get(type(error), "failed")
        failure = {"status": status, "reason": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print_json({**attempt.record(), **failure})
    kind = "Skipped" if isinstance(error, Unsupported) else "Error"
    sys.stderr.write(f"{kind}: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
    raise typer.Exit(error.exit_code)
