"""Cancer in phantoms shows in local shape alone: histograms, headers and metadata do not give it away."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.phantom.dataset import PhantomImage, make_patient
from data_prep.preprocessing.breast_segmentation import find_breast
from data_prep.preprocessing.placement import fit_box, fit_to_square

ROWS, COLUMNS, SIDE = 640, 512, 512
NUM_PATIENTS = 200
HIGHEST_AUC = 0.65


def measure(seed: int) -> pd.DataFrame:
    """Returns one row per image of a data set: label, ids, histograms and all that a header or a CSV says."""
    size = {"rows": ROWS, "columns": COLUMNS}
    patients = (make_patient(n, seed=seed, cancer_share=0.3, **size) for n in range(NUM_PATIENTS))
    return pd.DataFrame([describe(image) for patient in patients for image in patient])


def describe(image: PhantomImage) -> dict[str, object]:
    breast = find_breast(image.phantom.image, rows=ROWS, columns=COLUMNS)
    placement = fit_box(breast.box, is_flipped=breast.chest_wall_on_right, side=SIDE, fit="letterbox")
    square = fit_to_square(image.phantom.image, placement, side=SIDE)
    tissue = fit_to_square(image.phantom.tissue.astype(np.float32), placement, side=SIDE) > 0.5
    encoding = {f"encoding_{name}": value for name, value in vars(image.encoding).items()}
    return {
        **image.row,
        **encoding,
        "box_width": breast.box.width,
        "box_height": breast.box.height,
        "tissue_area": tissue.mean(),
        "image_histogram": histogram(square),
        "tissue_histogram": histogram(square[tissue]),
    }


def histogram(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.bincount((values * 63.999).astype(np.uint8).ravel(), minlength=64) / values.size


def auc_of(features: NDArray[np.float64], images: pd.DataFrame) -> float:
    """Returns the AUC of a logistic regression over breasts, cross-validated by patient."""
    table = pd.DataFrame(features).groupby(images["prediction_id"].to_numpy()).mean()
    breasts = images.drop_duplicates("prediction_id").set_index("prediction_id").loc[table.index]
    assert len(breasts) == 2 * NUM_PATIENTS
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    scores = cross_val_predict(
        model,
        table,
        breasts["cancer"],
        groups=breasts["patient_id"],
        cv=GroupKFold(5),
        method="predict_proba",
    )
    return float(roc_auc_score(breasts["cancer"], scores[:, 1]))


def histogram_aucs(images: pd.DataFrame) -> dict[str, float]:
    aucs = {}
    for region in ("image", "tissue"):
        fine = np.stack(images[f"{region}_histogram"].to_list())
        for num_bins in (16, 32, 64):
            coarse = fine.reshape(len(fine), num_bins, -1).sum(axis=2)
            aucs[f"histogram of the {region}, {num_bins} bins"] = auc_of(coarse, images)
    return aucs


def metadata_auc(images: pd.DataFrame) -> float:
    numbers = ["age", "implant", "box_width", "box_height", "tissue_area"]
    names = ["site_id", "machine_id", "density", "laterality", "view"]
    numbers += ["encoding_window_center", "encoding_window_width"]
    names += [name for name in images if name.startswith("encoding_") and name not in numbers]
    kinds = pd.get_dummies(images[names].astype("str"))
    return auc_of(np.hstack([images[numbers].to_numpy(float), kinds.to_numpy(float)]), images)


@pytest.mark.slow
def test_neither_histograms_nor_size_encoding_and_metadata_show_cancer() -> None:
    images = measure(seed=0)
    aucs = histogram_aucs(images) | {"size, encoding and metadata": metadata_auc(images)}
    assert max(aucs.values()) < HIGHEST_AUC, aucs
