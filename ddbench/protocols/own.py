"""Protocols of a user's own: a training from scratch whose numbers stand in a TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.component import did_you_mean
from ddbench.errors import UsageError
from ddbench.protocols.train import Train

PREFIX = "file:"
FIELDS = [field.name for field in fields(Train) if field.name not in ("name", "summary")]
_TRAIN = pydantic.TypeAdapter(Train)


def read_protocol(name: str) -> Train:
    """Return the protocol `file:PATH.toml`, called by the file's name: `file:mine` for `file:any/folder/mine.toml`.

    What the file leaves out is as in train/v1. Raises `UsageError` for a file that is missing or invalid.
    """
    path = Path(name.removeprefix(PREFIX))
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"the protocol {path} cannot be read: {(reason or 'it cannot be opened').lower()}.",
            "Give the path of a TOML file: --protocol file:mine.toml",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"the protocol {path} is not TOML: {str(error).lower()}.",
            "Write a line for each field, such as epochs = 500.",
        ) from None
    for key in content:
        if key not in FIELDS:
            raise UsageError(
                f"the protocol {path} has an unknown field {key!r}.{did_you_mean(key, FIELDS)}",
                f"Its fields are {', '.join(FIELDS)}.",
            )
    if content.get("optimiser") == "adamw" and "momentum" in content:
        raise UsageError(f"the protocol {path} gives adamw a momentum.", "Leave it out: adamw has its own.")
    return _parsed({"name": f"{PREFIX}{path.stem}", **content}, f"the protocol {path}")


def stored_protocol(definition: Mapping[str, Any]) -> Train:
    """Return the protocol that `content_of` gave the content of. Raises `UsageError` for an invalid one."""
    return _parsed(definition, "the protocol in these settings")


def content_of(protocol: Train) -> dict[str, Any]:
    """Return every field of a protocol but the summary, as JSON takes them."""
    content = asdict(protocol)
    del content["summary"]
    return content


def _parsed(content: Mapping[str, Any], who: str) -> Train:
    summary = "training from scratch as a file says"
    try:
        return _TRAIN.validate_python({**content, "summary": summary}, strict=False)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        value = f", not {first['input']!r}" if first["loc"] else ""
        raise UsageError(
            f"{who} is invalid: {where}{message[:1].lower()}{message[1:]}{value}.",
            "See the fields on the page of protocols in the documentation.",
        ) from error
