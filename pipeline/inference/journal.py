"""The journal of a prediction: a header that says of what it is, then a line for each batch."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.errors import UserError
from data_prep.storage.atomic import Journal, write_text
from data_prep.storage.files import read_own
from pipeline.runs.run_folder import Run

BEGINNING = b'{"run": '
BatchRecord = dict[str, Any]
"""A line of the journal: a batch, its probabilities by image_id and those of each fold, of models of breasts
what each image has by itself, reason and message of its failures, and of files with labels what a manifest
would say of them."""
NEEDED = {"batch", "probabilities", "failures"}
ADDED = {"folds", "records", "image_probabilities"}
"""Keys that not all lines have; those of older versions lack the first."""


@dataclass(frozen=True)
class JournalOwner:
    """The command that a journal is of.

    Attributes:
        command: its name.
        option: that chooses another journal.
        table: which table names the images.
        keeps: whether the journal stays when all is predicted.
    """

    command: str
    option: str
    table: str
    keeps: bool


PREDICT = JournalOwner("predict", "--out", "test.csv", keeps=False)
EVALUATE = JournalOwner("evaluate", "--name", "train.csv", keeps=True)


def recall(journal: Journal | None, header: Mapping[str, Any], owner: JournalOwner) -> list[BatchRecord]:
    """Returns what an earlier command has found; begins the journal if it is new.

    Raises:
        UserError: if that was of another run, another table, or another way to ask.
    """
    if journal is None:
        return []
    if journal.path.exists() and not BEGINNING.startswith(read_own(journal.path)[: len(BEGINNING)]):
        raise UserError(
            f"{journal.path} is not a journal of `mammo {owner.command}`: move it, or choose another "
            f"{owner.option}"
        )
    journal.mend()
    records = journal.read()
    if not records:
        journal.append(dict(header))
        return []
    if not all(NEEDED <= set(record) <= NEEDED | ADDED for record in records[1:]):
        raise UserError(f"{journal.path} is damaged: remove it and run the same command again")
    names = {"run": "another run", "exams": f"another {owner.table}", "flip": "another --flip"}
    changed = [text for name, text in names.items() if records[0].get(name) != header[name]]
    if changed:
        when = "" if owner.keeps else " before that command was broken off"
        raise UserError(
            f"{journal.path} keeps what was predicted with {' and '.join(changed)}{when}: choose another "
            f"{owner.option}, or remove this file to begin anew"
        )
    return [record for record in records[1:] if "folds" in record]  # an older version's are asked again


def rewrite(
    journal: Journal, header: Mapping[str, Any], records: Sequence[BatchRecord], *, order: Sequence[str]
) -> None:
    """Has the journal hold these batches in this order alone; one that does is left as it is."""
    by_batch = {record["batch"]: record for record in records}
    lines = [dict(header), *(by_batch[name] for name in order)]
    text = "".join(f"{json.dumps(line, allow_nan=False, sort_keys=True)}\n" for line in lines[1:])
    text = f"{json.dumps(lines[0])}\n{text}"
    if read_own(journal.path) != text.encode():
        write_text(journal.path, text)


def hash_run(run: Run) -> str:
    """Returns a hash of all that its models' predictions depend on: settings, but for inputs, and weights."""
    digest = hashlib.sha256(re.sub(rb"(?ms)^inputs = \[.*?\]\n", b"", read_own(run.settings)))
    for fold in run.list_folds():
        digest.update(hashlib.sha256(read_own(run.fold(fold).weights)).digest())
    return digest.hexdigest()
