"""A finished class run made of random numbers, for the tests of its figures and its report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.classification.class_run import ClassRun, prediction_columns, probability_column


def make_labels(num_classes: int) -> list[str]:
    """Names that sort like their numbers."""
    return [f"breed_{number:02d}" for number in range(num_classes)]


def make_predictions(num_classes=37, num_images=400, *, skill=2.0, seed=0) -> pd.DataFrame:
    """Test images of all classes; more `skill` finds more of them."""
    generator = np.random.default_rng(seed)
    labels = make_labels(num_classes)
    classes = np.sort(np.append(np.arange(num_classes), generator.integers(num_classes, size=num_images)))
    logits = generator.normal(size=(len(classes), num_classes))
    logits[np.arange(len(classes)), classes] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    named = np.array(labels)
    table = pd.DataFrame(probabilities, columns=[probability_column(label) for label in labels]).assign(
        image=[f"images/{row}.jpg" for row in range(len(classes))],
        label=named[classes],
        predicted=named[probabilities.argmax(axis=1)],
        probability=probabilities.max(axis=1),
    )
    return table[prediction_columns(labels)]


def write_class_run(folder: Path, predictions: pd.DataFrame, *, num_epochs=8) -> ClassRun:
    """Writes what training leaves but the weights; the last class is the most common one to learn from."""
    run = ClassRun(folder)
    folder.mkdir(parents=True)
    labels = [name.removeprefix("p_") for name in list(predictions)[4:]]
    counts = {label: 3 + (label == labels[-1]) for label in labels}
    training = [(f"{label}_{row}.jpg", label, "train") for label in labels for row in range(counts[label])]
    test = predictions[["image", "label"]].assign(split="test")
    images = pd.concat([pd.DataFrame(training, columns=["image", "label", "split"]), test])
    images["order"] = images["label"].map({label: number for number, label in enumerate(labels)})
    images.sort_values("order", kind="stable").drop(columns="order").to_csv(run.images, index=False)
    predictions.to_csv(run.training.predictions, index=False)
    run.settings.write_text("[model]\nimage_size = 224\n\n[train]\nepochs = 8\n")
    run.environment.write_text(json.dumps({"data": "/data/pets", "split": "the official lists"}))
    epochs = np.arange(1, num_epochs + 1)
    history = {"epoch": epochs, "step": 10 * epochs, "learning_rate": 1e-3, "train_loss": 3 / np.sqrt(epochs)}
    history |= {"test_loss": 3 / epochs**0.25, "test_accuracy": 1 - 1 / np.sqrt(epochs + 1)}
    pd.DataFrame(history).to_csv(run.training.history, index=False)
    return run
