"""Synthetic mammograms: outline, gland, pectoral muscle, findings, marker text.

Pictures are drawn with the chest wall on the left, and mirrored for right breasts. Lengths are shares of the
frame's rows unless they end in _px.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from data_prep.imageio.frame import Display
from data_prep.phantom.findings import BoolMask, Finding, Points, draw_finding

View = Literal["CC", "MLO"]
Laterality = Literal["L", "R"]

TISSUE_NOISE = np.float32(0.005)
DARKEST, BRIGHTEST = 0.0015, 0.9985  # a sigmoid window reaches neither 0 nor 1; of 8 bits these are 0 and 255


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What both breasts of a patient have in common.

    Attributes:
        depth: from the chest wall to the skin at the nipple.
        half_height: from the nipple's height to the edges of a CC view.
        fullness: of the outline: 0.5 makes a half ellipse, 1 a parabola, which is more pointed.
        nipple: how far it stands out.
        density: 0..1, how much gland there is.
        brightness: factor on all tissue.
    """

    depth: float
    half_height: float
    fullness: float
    nipple: float
    density: float
    brightness: float


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A picture and the truth about it.

    Attributes:
        image: display values [H, W].
        tissue: breast and pectoral muscle.
        lesions: what the finding changed in a breast with cancer; empty in the others.
        benign: what the benign findings changed.
    """

    image: Display
    tissue: BoolMask
    lesions: BoolMask
    benign: BoolMask


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Draws one patient's anatomy."""
    return Anatomy(
        depth=generator.uniform(0.26, 0.36),
        half_height=generator.uniform(0.40, 0.46),
        fullness=generator.uniform(0.6, 0.95),
        nipple=generator.uniform(0.01, 0.03),
        density=generator.uniform(0.1, 0.9),
        brightness=generator.uniform(0.88, 1.08),
    )


def make_phantom(
    generator: np.random.Generator,
    *,
    anatomy: Anatomy,
    findings: list[Finding],
    view: View,
    laterality: Laterality,
    rows: int,
    columns: int,
) -> Phantom:
    """Draws one view of one breast."""
    edge_px = outline(generator, anatomy, view=view, rows=rows)
    tissue = np.arange(columns) < edge_px[:, None]
    to_skin = distance_to_skin(tissue)
    nipple_px = np.array([edge_px.max(), edge_px.argmax()], dtype=np.float32)
    parenchyma = draw_parenchyma(generator, anatomy, to_skin=to_skin, nipple_px=nipple_px)
    if view == "MLO":
        parenchyma = add_pectoral_muscle(generator, parenchyma, depth_px=anatomy.depth * rows)
    image = anatomy.brightness * parenchyma * (1 - np.exp(-to_skin / 0.02))
    lesions, benign = np.zeros_like(tissue), np.zeros_like(tissue)
    for finding in findings:
        cover = draw_finding(generator, finding, edge_px=edge_px, inside=to_skin > 0.02)
        image += cover * (np.float32(finding.brightness) - image)
        lesions |= (cover > 0.25) & finding.is_cancer
        benign |= (cover > 0.25) & (not finding.is_cancer)
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    image = np.where(tissue, image + TISSUE_NOISE * noise, np.float32(0))
    masks = {"tissue": tissue, "lesions": lesions, "benign": benign}
    if laterality == "R":
        image, masks = image[:, ::-1], {name: mask[:, ::-1] for name, mask in masks.items()}
    image = add_marker(image, f"{laterality} {view}", is_left=laterality == "R")
    return Phantom(image=image, **{name: np.ascontiguousarray(mask) for name, mask in masks.items()})


def outline(generator: np.random.Generator, anatomy: Anatomy, *, view: View, rows: int) -> Points:
    """Returns how far the breast reaches from the chest wall in each row, in pixels.

    A CC view shows the breast alone; in an MLO view it goes over into the axilla above and the abdomen below.
    """
    nipple_row = generator.uniform(0.47, 0.53) if view == "CC" else generator.uniform(0.55, 0.61)
    y = np.arange(rows) / rows - nipple_row
    up, down = (anatomy.half_height,) * 2 if view == "CC" else (nipple_row, 0.8 * anatomy.half_height)
    heights = y / np.where(y < 0, up, down)
    reach = (1 - heights**2).clip(0) ** anatomy.fullness
    if view == "MLO":
        axilla = np.where(y < 0, generator.uniform(0.6, 0.85), 0) * heights
        abdomen = np.where(y > 0, generator.uniform(0.36, 0.46), 0) * heights.clip(0, 1)
        reach = (reach**4 + axilla**4 + abdomen**4) ** 0.25  # the largest of the three, without a corner
    wobble = enlarge(generator.standard_normal((7, 1), dtype=np.float32), rows=rows, columns=1)[:, 0]
    nipple = anatomy.nipple / anatomy.depth * np.exp(-((y / 0.015) ** 2))
    return (anatomy.depth * rows * reach * (1 + 0.02 * wobble + nipple)).astype(np.float32)


def distance_to_skin(tissue: BoolMask) -> Display:
    """Returns for each pixel of tissue how far the nearest air is; 0 in the air."""
    distance_px = cv2.distanceTransform(tissue.astype(np.uint8), cv2.DIST_L2, 3)
    return distance_px.astype(np.float32, copy=False) / np.float32(len(tissue))


def enlarge(picture: Display, *, rows: int, columns: int) -> Display:
    """Returns the picture at a larger size, smoothly interpolated."""
    return cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)


def draw_parenchyma(
    generator: np.random.Generator, anatomy: Anatomy, *, to_skin: Display, nipple_px: Points
) -> Display:
    """Returns fat with gland in it, denser towards the middle, and fibres that run to the nipple."""
    to_skin_half = to_skin[::2, ::2]  # at half size, which suffices for all but the skin
    rows, columns = to_skin_half.shape
    clouds = make_clouds(generator, rows=rows, columns=columns)
    gland = np.clip(to_skin_half / 0.1, 0, 1) / (1 + np.exp(4 * (0.9 - 1.4 * anatomy.density - clouds)))
    fibres = draw_fibres(generator, rows=rows, columns=columns, nipple_px=nipple_px / 2)
    half = 0.18 + 0.13 * gland + fibres * (0.04 + 0.06 * gland) + 0.015 * clouds
    skin = 0.1 * np.exp(-((to_skin - 0.004) ** 2) / 0.004**2)
    parenchyma: Display = enlarge(half, rows=to_skin.shape[0], columns=to_skin.shape[1]) + skin
    return parenchyma


def make_clouds(generator: np.random.Generator, *, rows: int, columns: int) -> Display:
    """Returns noise with a spectrum like 1/f and a standard deviation near 1: octaves of enlarged noise."""
    clouds = np.zeros((2, 2), dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        noise = generator.standard_normal((cells, max(cells * columns // rows, 2)), dtype=np.float32)
        clouds = enlarge(clouds, rows=cells, columns=noise.shape[1]) + noise * np.float32(2 / cells**0.7)
    return enlarge(clouds, rows=rows, columns=columns)


def draw_fibres(generator: np.random.Generator, *, rows: int, columns: int, nipple_px: Points) -> Display:
    """Returns thin strands 0..1 that fan out from the nipple: ridges of noise drawn in polar coordinates."""
    x_px, y_px = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    radius_px, angle = cv2.cartToPolar(x_px - nipple_px[0] * np.float32(1.15), y_px - nipple_px[1])
    bend = make_clouds(generator, rows=rows, columns=columns)
    noise = generator.standard_normal((200, 24), dtype=np.float32)
    across = angle * np.float32(199 / (2 * np.pi)) + np.float32(0.8) * bend
    along = radius_px * np.float32(23 / (1.5 * rows)) + np.float32(0.5) * bend
    polar = cv2.remap(noise, along, across, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    fibres: Display = np.clip(1 - np.abs(polar), 0, 1).astype(np.float32) ** 3
    return fibres


def add_pectoral_muscle(generator: np.random.Generator, parenchyma: Display, *, depth_px: float) -> Display:
    """Returns the picture with a bright triangle in the upper corner at the chest wall."""
    rows, columns = parenchyma.shape
    width_px = depth_px * generator.uniform(0.45, 0.6)
    height_px = rows * generator.uniform(0.45, 0.6)
    y_px, x_px = np.ogrid[:rows, :columns]
    inside = (1 - (y_px / height_px) ** 1.2).astype(np.float32) - (x_px / width_px).astype(np.float32)
    weight = 0.5 * (1 + np.tanh(inside / 0.04))
    muscle: Display = (1 - 0.6 * weight) * parenchyma + weight * (0.17 + 0.08 * np.clip(inside, 0, 1))
    return muscle


def add_marker(image: Display, text: str, *, is_left: bool) -> Display:
    """Returns the picture with burned-in text in the upper corner that is away from the chest wall."""
    rows, columns = image.shape
    marker = np.zeros(image.shape, dtype=np.uint8)
    origin = (int((0.04 if is_left else 0.78) * columns), int(0.06 * rows))
    cv2.putText(
        marker, text, origin, cv2.FONT_HERSHEY_SIMPLEX, rows / 1100, 230, max(1, rows // 500), cv2.LINE_AA
    )
    marked: Display = np.clip(np.maximum(image, marker / np.float32(255)), DARKEST, BRIGHTEST)
    return marked
