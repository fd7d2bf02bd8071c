"""The log of a run: JSON lines, one per outer step, cut back where a run returns to an earlier step."""

import json
from collections.abc import Mapping
from pathlib import Path

from ddbench.machine.files import explained_os_errors


class Log:
    """A file of JSON lines.

    Attributes:
        path: the file.
        bytes: length of what the run has written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0

    def append(self, line: Mapping[str, object]) -> None:
        """Write a line. Raises `DdbenchError` where the disk does not take it."""
        raw = (json.dumps(line) + "\n").encode()
        with explained_os_errors(self.path), open(self.path, "ab") as stream:
            stream.write(raw)
        self.bytes += len(raw)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; later lines follow there."""
        self.bytes = size
        if self.path.exists():
            with explained_os_errors(self.path), open(self.path, "r+b") as stream:
                stream.truncate(min(size, self.path.stat().st_size))
