"""The images of a cache that could not be prepared, in words: how many, why, and which files they are."""

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import count


def describe_failures(cache: Cache) -> str:
    """Returns how many images of a finished cache's exam table failed for which reason; empty for none.

    Raises:
        UserError: if the cache is not finished, or a table is damaged.
    """
    failures, num_images = _read_failures(cache)
    if failures.empty:
        return ""
    reasons = failures["reason"].value_counts().sort_index()
    counts = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
    return f"{len(failures):,} of {count(num_images, 'image')} failed to prepare ({counts})"


def list_failures(cache: Cache) -> list[str]:
    """Returns a sentence for each image that failed: its ids, its file, the reason.

    Raises:
        UserError: if the cache is not finished, or a table is damaged.
    """
    failures, _ = _read_failures(cache)
    columns = [failures[name] for name in ("patient_id", "image_id", "file", "reason", "message")]
    return [
        f"{patient_id}/{image_id}{f' ({file})' if file else ''}: {reason}: {message}"
        for patient_id, image_id, file, reason, message in zip(*columns, strict=True)
    ]


def _read_failures(cache: Cache) -> tuple[pd.DataFrame, int]:
    """Returns the failures of the exam table's images, and how many images it has; 0 if none has failed.

    Images that an earlier command for more patients asked for are left out.
    """
    failures = cache.read_failures()
    if failures.empty:
        return failures, 0
    asked = cache.read_exams(prepared_only=False)["image_id"]
    return failures[failures["image_id"].isin(asked)], len(asked)
