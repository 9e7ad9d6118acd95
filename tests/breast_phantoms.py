"""Phantoms whose label several images tell better than one: lesions in one view, and asymmetry."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.imageio.frame import Box
from data_prep.phantom.anatomy import draw_anatomy, make_phantom
from data_prep.phantom.findings import Finding, draw_findings
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.settings import PrepareSettings

Kind = Literal["one view", "one view alone", "asymmetry"]
ROWS, COLUMNS = 160, 128
DIAMETER = 0.13  # of a lesion, so that it is seen at few pixels


def write_breast_phantoms(folder: Path, *, kind: Kind, num_patients: int, side: int, seed: int = 0) -> Cache:
    """Writes a cache of phantoms with two breasts a woman and two views a breast.

    "one view": a breast with cancer has a mass in one of its views, by lot; in the other one it has what
    breasts without cancer have in both. "one view alone": besides, half of the breasts that would be without
    have a mass in both views, which is none. "asymmetry": a mass in one breast alone is a cancer, and half of
    all women have one in both breasts, which is none.
    """
    cache = Cache(folder)
    prepare = PrepareSettings(side=side)
    cache.open_for(CacheSettings(split="train", prepare=prepare))
    exams, records = [], {}
    for number in range(num_patients):
        for row, image in make_woman(np.random.default_rng([seed, number]), number, kind=kind, side=side):
            exams.append(row)
            whole = Placement(Box(0, 0, side, side), is_flipped=False, scale_x=1, scale_y=1, top=0)
            path = cache.image_path(row["patient_id"], row["image_id"])
            record = {name: row[name] for name in ("patient_id", "image_id")} | whole.as_record()
            records[row["image_id"]] = record | {"image_sha256": write_image(path, image)}
    cache.write_exams(pd.DataFrame(exams))
    cache.write_tables(records)
    return cache


def make_woman(
    generator: np.random.Generator, number: int, *, kind: Kind, side: int
) -> Iterator[tuple[dict, NDArray[np.uint8]]]:
    """Makes her four images and their rows."""
    anatomy = draw_anatomy(generator)
    marked = {breast for breast in "LR" if generator.random() < 0.3}
    benign: set[str] = set()
    if kind == "one view alone":
        benign = {breast for breast in sorted({*"LR"} - marked) if generator.random() < 0.5}
        marked |= benign
    if kind == "asymmetry":
        marked = {"LR"[generator.integers(2)]} if generator.random() < 0.5 else set("LR")
    for breast in "LR":
        findings = [enlarge(each) for each in draw_findings(generator, is_cancer=breast in marked)]
        seen_in = ["CC", "MLO"][generator.integers(2)]
        for view in ("CC", "MLO"):
            is_hidden = kind != "asymmetry" and view != seen_in and breast not in benign
            shown = [hide(each) if is_hidden else each for each in findings]
            phantom = make_phantom(
                generator,
                anatomy=anatomy,
                findings=shown,
                view=view,
                laterality="L",  # as prepared: the chest wall at the left, and no letter of the side
                rows=ROWS,
                columns=COLUMNS,
            )
            image = cv2.resize(phantom.image, (side, side), interpolation=cv2.INTER_AREA)
            is_cancer = breast in marked - benign and (kind != "asymmetry" or len(marked) == 1)
            row = {
                "patient_id": str(number + 1),
                "image_id": str(1000 + 4 * number + 2 * "LR".index(breast) + (view == "MLO")),
                "laterality": breast,
                "prediction_id": f"{number + 1}_{breast}",
                "cancer": int(is_cancer),
                "view": view,
            }
            yield row, np.rint(image * 255).astype(np.uint8)


def enlarge(finding: Finding) -> Finding:
    """Returns a finding that few pixels show: a mass is in the mean brighter than what is none."""
    brightness = (finding.brightness - 0.5) / 2 + (0.65 if finding.is_cancer else 0.45)
    return replace(finding, diameter=DIAMETER, has_calcifications=False, brightness=brightness)


def hide(finding: Finding) -> Finding:
    """Returns what a view without the mass shows in its place."""
    if not finding.is_cancer:
        return finding
    return replace(finding, is_cancer=False, brightness=finding.brightness - 0.2)
