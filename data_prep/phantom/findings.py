"""What synthetic breasts show: masses, calcifications, and benign likenesses of both.

The label decides one thing only: whether what a finding shows is gathered in one place (a mass, a cluster of
calcifications) or spread out (fibrous strands, scattered calcifications). Both give the same values to the
same number of pixels, so that an intensity histogram cannot tell them apart.

Lengths are shares of the frame's rows unless they end in _px.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import Display

BoolMask = NDArray[np.bool_]
Points = NDArray[np.floating[Any]]
Shape = tuple[int, ...]

NUM_SPECKS = 40
SPECK_DIAMETER = 0.008
FULL_WIDTH = 0.735  # of a disc's diameter, where `make_profile` falls to one half


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one breast shows in both of its views.

    Attributes:
        is_cancer: gathered in one place, otherwise spread over the breast.
        has_calcifications: bright specks, otherwise soft tissue.
        depth: 0 at the chest wall, 1 at the nipple.
        diameter: of a mass or a cluster.
        brightness: the display value of its brightest parts.
    """

    is_cancer: bool
    has_calcifications: bool
    depth: float
    diameter: float
    brightness: float


def draw_findings(generator: np.random.Generator, *, is_cancer: bool) -> list[Finding]:
    """Draws one breast's findings: the one that the label is about, and one that is always benign."""
    labelled = Finding(
        is_cancer=is_cancer,
        has_calcifications=bool(generator.random() < 0.15),
        depth=generator.uniform(0.4, 0.7),
        diameter=generator.uniform(0.053, 0.066),
        brightness=generator.uniform(0.7, 0.95),
    )
    benign = Finding(
        is_cancer=False,
        has_calcifications=bool(generator.random() < 0.15),
        depth=generator.uniform(0.3, 0.7),
        diameter=generator.uniform(0.02, 0.055),
        brightness=generator.uniform(0.5, 0.97),
    )
    return [labelled, benign]


def draw_finding(
    generator: np.random.Generator, finding: Finding, *, edge_px: Points, inside: BoolMask
) -> Display:
    """Returns how much of each pixel the finding covers, 0..1.

    Args:
        generator: draws where exactly it lies in this view.
        finding: what to draw.
        edge_px: how far the breast reaches in each row.
        inside: where there is breast.
    """
    rows = len(inside)
    row = int(edge_px.argmax() + generator.uniform(-0.15, 0.15) * rows)
    center_px = np.array([finding.depth * edge_px[row], row])
    diameter_px = finding.diameter * rows
    if finding.has_calcifications:
        area = NUM_SPECKS * SPECK_DIAMETER**2
        reach_px = np.array([0.4, 0.4]) * diameter_px if finding.is_cancer else np.array([0.09, 0.18]) * rows
        middles = place_specks(generator, center_px, reach_px=reach_px, shape=inside.shape)
    else:
        area = (finding.diameter / FULL_WIDTH) ** 2
        if finding.is_cancer:
            middles = place_core(generator, center_px, diameter_px=diameter_px, shape=inside.shape)
        else:
            middles = place_strands(generator, center_px, shape=inside.shape)
    return lay_out(make_profile(round(area * np.pi / 4 * rows**2)), middles, inside=inside)


def make_profile(num_px: int) -> Points:
    """Returns values from 1 to 0 that fall smoothly with the area that they cover."""
    return (1 - np.linspace(0, 1, num_px, dtype=np.float32) ** 2) ** 2


def lay_out(values: Points, middles: BoolMask, *, inside: BoolMask) -> Display:
    """Returns the values as a picture: the first on the middles, the later the farther from them."""
    distance_px = cv2.distanceTransform((~middles).astype(np.uint8), cv2.DIST_L2, 3)[inside]
    nearest = np.argpartition(distance_px, len(values))[: len(values)]
    covers = np.zeros(len(distance_px), dtype=np.float32)
    covers[nearest[np.argsort(distance_px[nearest], kind="stable")]] = values
    picture = np.zeros(inside.shape, dtype=np.float32)
    picture[inside] = covers
    return picture


def place_core(
    generator: np.random.Generator, center_px: Points, *, diameter_px: float, shape: Shape
) -> BoolMask:
    """Returns the uneven core of a mass."""
    core = np.zeros(shape, dtype=np.uint8)
    angles = np.sort(generator.uniform(0, 2 * np.pi, size=7))
    corners = center_px + 0.2 * diameter_px * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(core, [np.rint(corners).astype(np.int32)], color=1)
    return core.astype(np.bool_)


def place_specks(
    generator: np.random.Generator, center_px: Points, *, reach_px: Points, shape: Shape
) -> BoolMask:
    """Returns single pixels within reach of a point, across and down."""
    angles = generator.uniform(0, 2 * np.pi, size=NUM_SPECKS)
    reaches = np.sqrt(generator.uniform(0, 1, size=NUM_SPECKS))
    columns = np.rint(center_px[0] + reach_px[0] * reaches * np.cos(angles)).astype(int)
    rows = np.rint(center_px[1] + reach_px[1] * reaches * np.sin(angles)).astype(int)
    specks = np.zeros(shape, dtype=np.bool_)
    specks[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)] = True
    return specks


def place_strands(generator: np.random.Generator, center_px: Points, *, shape: Shape) -> BoolMask:
    """Returns the middle lines of two wavy strands near a point."""
    strands = np.zeros(shape, dtype=np.uint8)
    steps = np.linspace(-1, 1, 20)
    for _ in range(2):
        angle = generator.uniform(-1, 1)
        waves = generator.uniform(-0.015, 0.015) * np.sin(generator.uniform(2, 5) * steps)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offsets = np.stack([0.085 * steps, waves], axis=1) @ turn
        start = generator.uniform(-1, 1, size=2) * (0.03, 0.16)
        curve = np.rint(center_px + shape[0] * (start + offsets)).astype(np.int32)
        cv2.polylines(strands, [curve], isClosed=False, color=1)
    return strands.astype(np.bool_)
