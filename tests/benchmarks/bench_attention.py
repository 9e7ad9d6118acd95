"""Measures how much of the attention falls on the phantoms' lesions, for a run of the demo.

python tests/benchmarks/bench_attention.py --out FOLDER [--run DEMO]

For each held-out image of a breast with cancer, the ratio of a map's mean inside the lesion to its mean in
the tissue without findings, at the pixels of the DICOM file. Controls: the benign finding of the same image,
which may be as bright; a model with the same settings and random weights; and the picture's own brightness.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from data_prep.cache.folder import Cache
from data_prep.cache.images import read_image
from data_prep.phantom.anatomy import Phantom
from data_prep.phantom.dataset import PhantomImage, make_train_images
from data_prep.preprocessing.placement import Placement
from pipeline.models.attention import Array, find_maps
from pipeline.models.normalization import to_tensor
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights
from pipeline.reporting.heatmap import to_full_matrix
from pipeline.runs.recipe import ModelSettings, load_recipe
from pipeline.runs.run_folder import Run, read_oof

MAPS = ["last_layer", "rollout", "gradient_rollout", "brightness"]
SERIES = {  # model, region: colour
    ("trained", "lesion"): "#3987e5",
    ("trained", "benign"): "#d95926",
    ("untrained", "lesion"): "#8a8a8a",
}
KEYS = ["model", "map", "region"]
DRAWN = 0.1, 10_000.0  # ratios beyond are drawn at the edge

Truths = dict[str, Phantom]
"""The phantoms of breasts with cancer, by image_id."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures attention on the phantoms' lesions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the picture")
    parser.add_argument("--run", type=Path, help="folder of a finished demo; without it the demo is run")
    arguments = parser.parse_args()
    folder = arguments.run or arguments.out / "demo"
    if arguments.run is None:
        subprocess.run([sys.executable, "-m", "pipeline", "demo", "--out", folder], check=True)
    ratios = measure_run(Run(folder), Cache(folder / "cache"), find_truths(folder))
    arguments.out.mkdir(parents=True, exist_ok=True)
    ratios.to_csv(arguments.out / "attention_lesions.csv", index=False)
    draw(ratios).savefig(arguments.out / "attention_lesions.png", dpi=120)
    print(summarise(ratios).to_string())


def find_truths(demo: Path) -> Truths:
    """Draws the demo's phantoms once more, as the files do not say where the lesions are."""
    num_patients = pd.read_csv(demo / "data" / "train.csv")["patient_id"].nunique()
    images = make_train_images(num_patients=num_patients, seed=load_recipe(demo / "settings.toml").train.seed)
    return select_cancers(images)


def select_cancers(images: Iterator[PhantomImage]) -> Truths:
    return {image.row["image_id"]: image.phantom for image in images if image.row["cancer"]}


def measure_run(run: Run, cache: Cache, truths: Truths, *, folds: list[int] | None = None) -> pd.DataFrame:
    """Returns one row per fold, model, map, region and image: the ratio of inside to outside."""
    settings = load_recipe(run.settings).model
    records = cache.read_manifest().set_index("image_id")
    rows = []
    for fold in run.list_folds() if folds is None else folds:
        held_out = read_oof(run.fold(fold).oof).query("cancer == 1")
        models = {
            "trained": load_weights(run.fold(fold), settings)[0],
            "untrained": make_blank(settings, fold),
        }
        for patient_id, image_id in zip(held_out["patient_id"], held_out["image_id"], strict=True):
            image = read_image(cache.image_path(patient_id, image_id))
            contrast = make_contrast(truths[image_id], records.loc[image_id].to_dict(), side=len(image))
            for kind, model in models.items():
                maps = find_maps(model, to_tensor(image).unsqueeze(0))
                squares = {name: getattr(maps, name)[0].numpy() for name in MAPS[:3]}
                squares |= {"brightness": image.astype(float)} if kind == "trained" else {}
                rows += [
                    (fold, image_id, kind, name, region, ratio)
                    for name, square in squares.items()
                    for region, ratio in contrast(square).items()
                ]
    return pd.DataFrame(rows, columns=["fold", "image_id", *KEYS, "ratio"])


def make_blank(settings: ModelSettings, seed: int) -> VisionTransformer:
    """Returns a model as it is before training; its head is drawn, or there would be no gradient."""
    torch.manual_seed(seed)
    model = VisionTransformer(settings)
    torch.nn.init.trunc_normal_(model.head.weight, std=0.02)
    return model.eval()


def make_contrast(
    truth: Phantom, record: dict[str, object], *, side: int
) -> Callable[[Array], dict[str, float]]:
    """Returns the measure of a map of one image: by region, its mean there over that in other tissue."""
    rows, columns = truth.lesions.shape
    placement = Placement.from_record(record)
    regions = {"lesion": truth.lesions, "benign": truth.benign & ~truth.lesions}
    other = truth.tissue & ~truth.lesions & ~truth.benign

    def contrast(square_nn: Array) -> dict[str, float]:
        values = to_full_matrix(square_nn, placement, side=side, rows=rows, columns=columns)
        outside = np.nanmean(values[other])
        return {name: float(np.nanmean(values[region]) / outside) for name, region in regions.items()}

    return contrast


def summarise(ratios: pd.DataFrame) -> pd.DataFrame:
    """Returns median, quartiles, share above 1 and number of images per model, map, region and fold."""
    by_fold = ratios.assign(fold=ratios["fold"].astype("str"))
    pooled = ratios.assign(fold="all")
    groups = pd.concat([by_fold, pooled]).groupby([*KEYS, "fold"])["ratio"]
    columns = {
        "25 %": groups.quantile(0.25),
        "median": groups.median(),
        "75 %": groups.quantile(0.75),
        "share above 1": groups.agg(lambda ratio: (ratio > 1).mean()),
        "images": groups.size(),
    }
    return pd.DataFrame(columns).round(3)


def draw(ratios: pd.DataFrame) -> Figure:
    """Returns the distribution of the ratios, a point per image and fold."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    generator = np.random.default_rng(0)
    series = ratios.set_index(KEYS)["ratio"].sort_index()
    for number, ((model, region), colour) in enumerate(SERIES.items()):
        axes.plot([], [], "o", color=colour, label=f"{model}, {region}")
        for position, name in enumerate(MAPS):
            if (model, name, region) not in series.index:
                continue  # brightness needs no model
            values = series.loc[(model, name, region)].clip(*DRAWN)
            middle = position + 0.28 * (number - 1)
            scattered = middle + generator.uniform(-0.09, 0.09, len(values))
            axes.plot(scattered, values, ".", color=colour, alpha=0.5)
            quartiles = values.quantile([0.25, 0.5, 0.75])
            axes.hlines(quartiles, middle - 0.12, middle + 0.12, "black", linewidth=[1, 2.5, 1])
    axes.axhline(1.0, color="black", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(MAPS)), ["last layer", "rollout", "gradient-weighted rollout", "brightness"])
    axes.set_ylabel("mean inside over mean of tissue without findings")
    axes.set_title(
        "A point per held-out image, at the edge where it lies beyond; lines: quartiles", fontsize=10
    )
    figure.legend(loc="outside lower center", ncols=len(SERIES))
    return figure


if __name__ == "__main__":
    main()
