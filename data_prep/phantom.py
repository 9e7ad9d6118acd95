"""Synthetic mammograms: breast outline, gland, pectoral muscle, marker text and one finding per breast. Knows no file.

Every breast holds one finding, benign or malignant, and the label decides one thing only: whether what the finding adds
to the picture is gathered in one place (a mass, a cluster of calcifications) or spread out (fibrous strands, scattered
calcifications). Both add the same values to the same number of pixels, so that an intensity histogram cannot tell them
apart, and all else is drawn without looking at the label.

Pictures are drawn with the chest wall on the left, and mirrored for right breasts. Lengths are shares of the frame's
rows unless they end in _px.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.frame import Display

Mask = NDArray[np.bool_]
Points = NDArray[np.float32]
View = Literal["CC", "MLO"]
Laterality = Literal["L", "R"]

AIR = 0.015  # what the detector shows beside the breast
AIR_NOISE = np.float32(0.001)
TISSUE_NOISE = np.float32(0.005)
DARKEST, BRIGHTEST = 0.01, 0.99  # a sigmoid window reaches neither 0 nor 1


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What both breasts of a patient have in common.

    Attributes:
        depth: from chest wall to nipple.
        half_height: from the nipple's height to the lower edge.
        density: 0..1, how much gland there is.
        brightness: factor on all tissue.
    """

    depth: float
    half_height: float
    density: float
    brightness: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one breast shows in both of its views.

    Attributes:
        is_cancer: gathered in one place, otherwise spread over the breast.
        has_calcifications: bright specks, otherwise soft tissue.
        depth: 0 at the chest wall, 1 at the nipple.
        diameter: of a mass or a cluster.
        contrast: added to the display values.
    """

    is_cancer: bool
    has_calcifications: bool
    depth: float
    diameter: float
    contrast: float


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A picture and the truth about it.

    Attributes:
        image: display values [H, W].
        tissue: breast and pectoral muscle.
        lesions: what the finding changed in a breast with cancer; empty in the others.
    """

    image: Display
    tissue: Mask
    lesions: Mask


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Draws one patient's anatomy."""
    return Anatomy(
        depth=generator.uniform(0.36, 0.52),
        half_height=generator.uniform(0.36, 0.43),
        density=generator.uniform(0.1, 0.9),
        brightness=generator.uniform(0.88, 1.08),
    )


def draw_finding(generator: np.random.Generator, *, is_cancer: bool) -> Finding:
    """Draws one breast's finding; the same numbers are drawn for either label."""
    return Finding(
        is_cancer=is_cancer,
        has_calcifications=bool(generator.random() < 0.2),
        depth=generator.uniform(0.4, 0.7),
        diameter=generator.uniform(0.045, 0.06),
        contrast=generator.uniform(0.38, 0.5),
    )


def make_phantom(
    generator: np.random.Generator,
    *,
    anatomy: Anatomy,
    finding: Finding,
    view: View,
    laterality: Laterality,
    rows: int,
    columns: int,
) -> Phantom:
    """Draws one view of one breast."""
    edge_px = outline(generator, anatomy, view=view, rows=rows)
    tissue = np.arange(columns) < edge_px[:, None]
    to_skin = distance_to_skin(tissue) / rows
    nipple_px = np.array([edge_px.max(), edge_px.argmax()], dtype=np.float32)
    parenchyma = draw_parenchyma(generator, anatomy, to_skin=to_skin, nipple_px=nipple_px)
    if view == "MLO":
        parenchyma = add_pectoral_muscle(generator, parenchyma, depth_px=anatomy.depth * rows)
    added = draw_finding_layer(generator, finding, edge_px=edge_px, to_skin=to_skin, nipple_px=nipple_px)
    image = anatomy.brightness * parenchyma * (1 - np.exp(-to_skin / 0.02)) + added
    image = np.where(tissue, image, AIR)
    image += generator.standard_normal(image.shape, dtype=np.float32) * np.where(tissue, TISSUE_NOISE, AIR_NOISE)
    lesions = (added > 0.25 * finding.contrast) & finding.is_cancer
    if laterality == "R":
        image, tissue, lesions = image[:, ::-1], tissue[:, ::-1], lesions[:, ::-1]
    image = add_marker(image, f"{laterality} {view}", is_left=laterality == "R")
    return Phantom(image=image, tissue=np.ascontiguousarray(tissue), lesions=np.ascontiguousarray(lesions))


def outline(
    generator: np.random.Generator, anatomy: Anatomy, *, view: View, rows: int
) -> NDArray[np.float32]:
    """Returns how far the breast reaches from the chest wall in each row, in pixels."""
    middle = 0.5 if view == "CC" else 0.93 - anatomy.half_height
    heights = (np.arange(rows) / rows - middle) / anatomy.half_height
    reach = np.clip(1 - np.abs(heights) ** 2.2, 0, None) ** 0.55
    if view == "MLO":  # the breast goes over into the axilla, so the frame's upper rows show tissue too
        axilla = 0.45 + 0.1 * generator.random()
        reach = np.where(heights < 0, np.maximum(reach, axilla * np.clip(1 - heights * 0.02, 0, 1)), reach)
        reach = cv2.GaussianBlur(reach.reshape(-1, 1), (1, 0), sigmaX=1, sigmaY=rows * 0.03).ravel()
    wobble = (
        1
        + 0.02
        * cv2.resize(generator.standard_normal((7, 1)), (1, rows), interpolation=cv2.INTER_CUBIC).ravel()
    )
    edge: NDArray[np.float32] = (anatomy.depth * rows * reach * wobble).astype(np.float32)
    return edge


def distance_to_skin(tissue: Mask) -> Display:
    """Returns for each pixel of tissue how far the nearest pixel of air is, in pixels; 0 in the air."""
    distance: Display = cv2.distanceTransform(tissue.astype(np.uint8), cv2.DIST_L2, 3)
    return distance


def draw_parenchyma(
    generator: np.random.Generator, anatomy: Anatomy, *, to_skin: Display, nipple_px: Points
) -> Display:
    """Returns fat with gland in it, denser towards the middle, and fibres that run to the nipple."""
    rows, columns = to_skin.shape
    clouds = make_clouds(generator, rows=rows, columns=columns)
    inside = np.clip(to_skin / 0.12, 0, 1)
    gland = inside / (1 + np.exp(4 * (0.9 - 1.4 * anatomy.density - clouds)))
    fibres = draw_fibres(generator, rows=rows // 2, columns=columns // 2, nipple_px=nipple_px / 2)
    fibres = cv2.resize(fibres, (columns, rows), interpolation=cv2.INTER_LINEAR)
    skin = 0.12 * np.exp(-((to_skin - 0.004) ** 2) / 0.004**2)
    parenchyma: Display = 0.2 + 0.17 * gland + fibres * (0.05 + 0.08 * gland) + 0.02 * clouds + skin
    return parenchyma


def make_clouds(generator: np.random.Generator, *, rows: int, columns: int) -> Display:
    """Returns noise with a spectrum like 1/f and a standard deviation of about 1: octaves of enlarged noise."""
    clouds = np.zeros((2, 2), dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        noise = generator.standard_normal((cells, max(cells * columns // rows, 2)), dtype=np.float32)
        clouds = cv2.resize(clouds, noise.shape[::-1], interpolation=cv2.INTER_CUBIC) + noise * (2 / cells**0.7)
    return cv2.resize(clouds, (columns, rows), interpolation=cv2.INTER_CUBIC)


def draw_fibres(generator: np.random.Generator, *, rows: int, columns: int, nipple_px: Points) -> Display:
    """Returns thin strands 0..1 that fan out from the nipple: ridges of noise that is drawn in polar coordinates."""
    x_px, y_px = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    radius_px, angle = cv2.cartToPolar(x_px - nipple_px[0] * 1.15, y_px - nipple_px[1])  # no seam in the breast
    bend = make_clouds(generator, rows=rows, columns=columns)
    noise = generator.standard_normal((200, 24), dtype=np.float32)
    across = angle * np.float32(199 / (2 * np.pi)) + np.float32(0.8) * bend
    along = radius_px * np.float32(23 / (1.5 * rows)) + np.float32(0.5) * bend
    ridges = 1 - np.abs(cv2.remap(noise, along, across, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))
    fibres: Display = np.clip(ridges, 0, 1) ** 3
    return fibres


def add_pectoral_muscle(generator: np.random.Generator, parenchyma: Display, *, depth_px: float) -> Display:
    """Returns the picture with a bright triangle in the upper corner at the chest wall."""
    rows, columns = parenchyma.shape
    width_px = depth_px * generator.uniform(0.5, 0.65)
    height_px = rows * generator.uniform(0.45, 0.6)
    y_px, x_px = np.ogrid[:rows, :columns]
    inside = (1 - (y_px / height_px) ** 1.2).astype(np.float32) - (x_px / width_px).astype(np.float32)
    weight = 1 / (1 + np.exp(-inside / 0.02))
    muscle: Display = (
        (1 - 0.7 * weight) * parenchyma + weight * (0.24 + 0.08 * np.clip(inside, 0, 1))
    ).astype(np.float32)
    return muscle


def draw_finding_layer(
    generator: np.random.Generator,
    finding: Finding,
    *,
    edge_px: NDArray[np.float32],
    to_skin: Display,
    nipple_px: Points,
) -> Display:
    """Returns what the finding adds to the picture."""
    rows, columns = to_skin.shape
    row = int(nipple_px[1] + generator.uniform(-0.15, 0.15) * rows)
    center_px = np.array([finding.depth * edge_px[row], row], dtype=np.float32)
    radius_px = finding.diameter * rows / 2
    if finding.has_calcifications:
        spread_px = radius_px if finding.is_cancer else radius_px * 5
        return draw_specks(
            generator, to_skin, center_px=center_px, spread_px=spread_px, contrast=finding.contrast
        )
    mass = draw_mass(generator, to_skin, center_px=center_px, radius_px=radius_px, contrast=finding.contrast)
    return mass if finding.is_cancer else spread_along_strands(generator, mass, center_px=center_px)


def draw_mass(
    generator: np.random.Generator, to_skin: Display, *, center_px: Points, radius_px: float, contrast: float
) -> Display:
    """Returns a soft blob with an uneven rim."""
    left, top = np.floor(center_px - 1.5 * radius_px).astype(int).clip(0)
    right, bottom = np.ceil(center_px + 1.5 * radius_px).astype(int)
    y_px, x_px = np.mgrid[top : min(bottom, to_skin.shape[0]), left : min(right, to_skin.shape[1])]
    distance_px = np.hypot(x_px - center_px[0], y_px - center_px[1])
    angle = np.arctan2(y_px - center_px[1], x_px - center_px[0])
    bulges = sum(0.06 * np.sin(lobes * angle + generator.uniform(0, 2 * np.pi)) for lobes in (2, 3, 5))
    rim_px = 1.2 * radius_px * (1 + bulges)
    mass = np.zeros_like(to_skin)
    mass[y_px, x_px] = contrast * np.clip(1.3 * (1 - (distance_px / rim_px) ** 2), 0, 1)
    return mass


def spread_along_strands(generator: np.random.Generator, mass: Display, *, center_px: Points) -> Display:
    """Returns the mass's own values laid out along curved strands, the brightest on their middle lines."""
    rows = len(mass)
    canvas = np.full(mass.shape, 255, dtype=np.uint8)
    steps = np.linspace(-1, 1, 20)
    for _ in range(2):
        slope, start = generator.uniform(-0.5, 0.5), generator.uniform(-0.08, 0.08)
        waves = generator.uniform(-0.015, 0.015) * np.sin(generator.uniform(2, 5) * steps)
        offsets = np.stack([0.11 * steps, start + 0.11 * slope * steps + waves], axis=1)
        curve = np.rint(center_px + rows * offsets).astype(np.int32)
        cv2.polylines(canvas, [curve], isClosed=False, color=0)
    distance_px = cv2.distanceTransform(canvas, cv2.DIST_L2, 3)
    values = np.sort(mass[mass > 0])[::-1]
    nearest = np.argpartition(distance_px.ravel(), len(values))[: len(values)]
    nearest = nearest[np.argsort(distance_px.ravel()[nearest], kind="stable")]
    strands = np.zeros_like(mass)
    strands.ravel()[nearest] = values
    return strands


def draw_specks(
    generator: np.random.Generator, to_skin: Display, *, center_px: Points, spread_px: float, contrast: float
) -> Display:
    """Returns small bright specks around a point."""
    rows, columns = to_skin.shape
    specks = np.zeros(to_skin.shape, dtype=np.uint8)
    for _ in range(24):
        angle, share = generator.uniform(0, 2 * np.pi), np.sqrt(generator.random())
        x_px = center_px[0] + share * spread_px * np.cos(angle)
        y_px = center_px[1] + share * spread_px * np.sin(angle)
        center = (int(np.clip(x_px, 0, columns - 1) * 16), int(np.clip(y_px, 0, rows - 1) * 16))
        cv2.circle(specks, center, int(0.0035 * rows * 16), 255, -1, cv2.LINE_AA, shift=4)
    return specks * np.float32(1.4 * contrast / 255)


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
