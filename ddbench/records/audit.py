"""What is wrong with rows: cells, figures and artefacts that the program could not have written so."""

import datetime
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import PARTS, Settings
from ddbench.errors import UsageError
from ddbench.machine.files import sha256
from ddbench.protocols import PROTOCOLS, get_protocol, label_regime, protocol_hash
from ddbench.records import leaderboard
from ddbench.records.leaderboard import Row
from ddbench.records.result import artifact_path
from ddbench.records.stats import summarise

_SHA256 = re.compile("[0-9a-f]{64}")


def faults(folder: Path) -> list[str]:
    """What is wrong with the rows of all leaderboards in `folder` and with their artefacts, a line each.

    Raises `DdbenchError` for a file that is no leaderboard at all.
    """
    rows = leaderboard.read(folder)
    leaderboard.published(folder)
    found = [f"{row.run_id}: {fault}" for row in rows for fault in faults_of(row, folder)]
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        if leaderboard.identity(row) in seen:
            found.append(f"{row.run_id}: stands there twice")
        seen.add(leaderboard.identity(row))
    return found


def faults_of(row: Row, folder: Path) -> Iterator[str]:
    """What is wrong with one row and its artefact, a line each."""
    ill_formed = list(_form_at_fault(row))
    yield from ill_formed
    if ill_formed:
        return
    yield from _figures_at_fault(row)
    path = artifact_path(folder, row.artifact_sha256)
    if not path.exists():
        return
    if sha256(path.read_bytes()) != row.artifact_sha256:
        yield "its artefact is another file than the one that was scored"
        return
    try:
        distilled = DistilledSet.load(path)
        spec = spec_of(distilled)
    except (UsageError, KeyError, ValueError) as error:
        yield f"its artefact cannot be read ({error})"
        return
    if spec.fingerprint != row.fingerprint or distilled.metadata.get("fingerprint") != row.fingerprint:
        yield "its fingerprint is not that of its artefact"
    told: dict[str, object] = {
        "images_per_class": spec.images_per_class,
        "steps": spec.steps,
        "epochs": spec.epochs,
        "protocol": spec.protocol,
        "seed": spec.seed,
        "dataset_hash": distilled.metadata.get("dataset_hash"),
        "label_regime": label_regime(get_protocol(spec.protocol), distilled),
        "sample_shape": "x".join(map(str, distilled.inputs.shape[2:])),
        "images": distilled.count,
        "bytes": distilled.nbytes,
    }
    for part in (part for part in PARTS if f"{part}_options" in Row.model_fields):
        choice = getattr(spec, part)
        told[part] = choice.name if choice else ""
        told[f"{part}_options"] = json.dumps(choice.options if choice else {}, sort_keys=True)
    told["dataset"] = distilled.metadata.get("dataset")
    if not row.run_id.startswith(spec.run_id):
        yield f"it says run_id {row.run_id!r}, its artefact {spec.run_id!r}"
    for name, value in told.items():
        if getattr(row, name) != value:
            yield f"it says {name} {getattr(row, name)!r}, its artefact {value!r}"


def _form_at_fault(row: Row) -> Iterator[str]:
    """Cells that are not of the kind the program writes; what they hold is another question."""
    if row.schema_version != leaderboard.SCHEMA:
        yield f"it is of schema {row.schema_version}, this is {leaderboard.SCHEMA}"
    for name in ("artifact_sha256", "fingerprint", "dataset_hash"):
        if not _SHA256.fullmatch(getattr(row, name)):
            yield f"its {name} is no SHA-256"
    if row.label_regime not in ("hard", "stored soft", "teacher online"):
        yield f"its label regime {row.label_regime!r} is none"
    if row.protocol not in PROTOCOLS:
        yield f"its protocol {row.protocol!r} is none"
    elif row.protocol_hash != protocol_hash(PROTOCOLS[row.protocol]):
        yield f"its protocol_hash is not that of {row.protocol} as it is here"
    try:
        datetime.datetime.fromisoformat(row.created)
    except ValueError:
        yield f"it says created {row.created!r}, which is no time"
    name, _, copy = row.dataset.partition("@")
    if not name or not row.dataset_hash.startswith(copy):
        yield f"its dataset {row.dataset!r} is not that of its hash"
    yield from leaderboard.cell_faults(row)


def _figures_at_fault(row: Row) -> Iterator[str]:
    values = json.loads(row.values)
    if len(values) != row.n:
        yield f"it holds {len(values)} values where n is {row.n}"
        return
    took = (row.seconds_distill, row.seconds_evaluate, row.peak_memory_mb)
    if min(took) < 0 or min(row.train_images, row.test_images, row.images, row.bytes) < 1:
        yield "it counts less than nothing"
    wanted = summarise(values)
    for name in ("mean", "std", "low", "high"):
        there, right = getattr(row, name), getattr(wanted, name)
        if (there is None) != (right is None) or (right is not None and not math.isclose(there, right, abs_tol=1e-9)):
            yield f"its {name} {there} is not that of its values, {right}"


def spec_of(distilled: DistilledSet) -> Settings:
    """The spec that a set was made by, as its file tells. Raises `KeyError` or `ValueError` where it tells none."""
    return Settings.model_validate(json.loads(distilled.metadata["spec"]))


def spec_of_row(row: Row) -> Settings | None:
    """The spec that a row tells of itself, where it tells all of it: what it does not tell is as by default."""
    parts = {part: (getattr(row, part), getattr(row, f"{part}_options")) for part in PARTS if hasattr(row, part)}
    fields: dict[str, Any] = {
        part: {"name": name, "options": json.loads(options)} for part, (name, options) in parts.items() if name
    }
    fields |= {"dataset": {**fields["dataset"], "name": row.dataset.partition("@")[0]}}
    fields |= {name: getattr(row, name) for name in ("images_per_class", "steps", "epochs", "protocol", "seed")}
    shape = tuple(map(int, row.sample_shape.split("x")))
    usual = Settings.model_fields["eval_networks"].default
    for sample_shape, networks in itertools.product((None, shape), (row.n, usual)):
        spec = Settings.model_validate({**fields, "sample_shape": sample_shape, "eval_networks": networks})
        if spec.fingerprint == row.fingerprint:
            return spec
    return None
