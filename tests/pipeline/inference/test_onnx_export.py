"""ONNX files of a run: onnxruntime computes from raw pixels what `mammo predict` does, in any batch."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.errors import UserError
from pipeline.inference import onnx_export
from pipeline.inference.ensemble import predict_batch
from pipeline.inference.onnx_export import Portable, export_onnx, measure_difference, to_onnx
from pipeline.models.normalization import to_tensor
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import ModelSettings
from pipeline.runs.run_folder import Run
from pipeline.runtime.precision import ComputeSettings
from tests import forked
from tests.pipeline.tiny import MODEL, noise

CPU = ComputeSettings("cpu", "float32")


def test_without_the_extra_one_sentence_says_what_to_install(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"^ONNX needs onnx, which is not installed: pip install onnx "):
        export_onnx(unbroken, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_an_unfinished_run_is_not_exported(finished: Run, tmp_path: Path) -> None:
    finished.fold(1).oof.unlink()
    with pytest.raises(UserError, match="is not finished: fold 1 of 2 still to be trained"):
        export_onnx(finished, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_the_files_give_the_probabilities_of_the_folds(unbroken: Run, tmp_path: Path) -> None:
    """The oracle takes the way of `mammo predict`, which knows nothing of the exported module."""
    runtime = pytest.importorskip("onnxruntime")
    exported = export_onnx(unbroken, tmp_path / "onnx")
    assert [one.path.name for one in exported] == ["fold_0.onnx", "fold_1.onnx"]
    assert max(one.difference for one in exported) < 1e-5
    images = [noise(seed) for seed in range(7)]
    for fold, one in enumerate(exported):
        session = runtime.InferenceSession(one.path)
        model, shift = load_weights(unbroken.fold(fold), MODEL)
        for num_images in (1, 2, 7):
            pixels_B1HW = np.stack(images[:num_images])[:, None].astype(np.float32)
            (theirs_B,) = session.run(["probability"], {"images": pixels_B1HW})
            images_BCHW = torch.stack([to_tensor(image) for image in images[:num_images]])
            ours_B = predict_batch(model, images_BCHW, logit_shift=shift, compute=CPU)
            assert theirs_B.shape == (num_images,)
            np.testing.assert_allclose(theirs_B, ours_B, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "gap", "head": "mlp", "layer_scale": 0.1},
        {"pos_embed": "sincos2d", "attention": "explicit", "drop_path": 0.1, "gradient_checkpointing": True},
        {"kept_patches": 7},
        {"kept_patches": 7, "register_tokens": 4, "qk_norm": True, "layer_scale": 0.1},
        {"register_tokens": 4, "pool": "gap"},
    ],
    ids=["gap", "explicit", "kept patches", "registers and kept patches", "registers and gap"],
)
def test_every_kind_of_model_can_be_exported(changes: dict[str, object]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = VisionTransformer(ModelSettings(**(MODEL.model_dump() | changes)))
    torch.nn.init.normal_(model.head.weight)
    portable = Portable(model, logit_shift=-1.5, brightest=65535.0).eval()
    images = [noise(seed, bit_depth=16) for seed in range(3)]
    pixels_B1HW = torch.from_numpy(np.stack(images)[:, None].astype(np.float32))
    content = to_onnx(portable, (pixels_B1HW,))
    assert measure_difference(runtime, content, portable, (pixels_B1HW[:1],)) < 1e-4
    expected_B = predict_batch(
        model, torch.stack([to_tensor(image) for image in images]), logit_shift=-1.5, compute=CPU
    )
    with torch.inference_mode():
        np.testing.assert_allclose(portable(pixels_B1HW)[0].numpy(), expected_B, atol=1e-6)


def test_a_file_that_differs_from_torch_is_not_written(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_import_runtime", lambda: None)
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *_: b"")
    monkeypatch.setattr(onnx_export, "measure_difference", lambda *_: 0.01)
    with pytest.raises(UserError, match=r"fold 0 as ONNX differs from torch by 0\.01, more than 0\.0001"):
        export_onnx(unbroken, tmp_path / "onnx")
    assert not list((tmp_path / "onnx").iterdir())


def test_importing_the_module_imports_no_onnx() -> None:
    program = "import pipeline.inference.onnx_export, sys; "
    program += "assert not {'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)"
    forked.run("-c", program).check_returncode()
