"""The images of a test set on their way to a device."""

from pathlib import Path

import pytest
import torch

from pipeline.inference import image_sources
from pipeline.inference.image_sources import FolderSource
from pipeline.runtime.transfers import send
from tests.pipeline.tiny import PREPARE, SIDE, make_exams, write_test_data


def test_pixels_of_files_are_sent_as_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def send(pixels: torch.Tensor, device: str) -> torch.Tensor:
        sent.append((device, pixels.dtype, tuple(pixels.shape)))
        return pixels

    monkeypatch.setattr(image_sources, "send", send)
    source = FolderSource(write_test_data(tmp_path / "data", make_exams(1, split="test")), PREPARE, workers=0)
    (batch,) = source.load([range(4)], device="cuda")
    assert sent == [("cuda", torch.uint8, (4, SIDE, SIDE))]
    assert (batch.images_BCHW.dtype, batch.images_BCHW.shape) == (torch.float32, (4, 1, SIDE, SIDE))


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda", True), ("cpu", False)])
def test_memory_is_pinned_for_a_gpu_alone(
    device: str, is_pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda pixels: steps.append("pinned") or pixels)
    monkeypatch.setattr(torch.Tensor, "to", lambda pixels, to, **how: steps.append((to, how)) or pixels)
    send(torch.zeros(3), device)
    assert steps == [*["pinned"] * is_pinned, (device, {"non_blocking": True})]


def test_a_file_is_called_by_its_own_name_though_a_link_leads_to_it(tmp_path: Path) -> None:
    """As `mammo collect` makes them; a name that a table must not hold is left out."""
    folder = write_test_data(tmp_path / "data", make_exams(1, split="test"))
    for image_id, name in {"101": "IM 0001", "102": "=1+1.png"}.items():
        (link,) = (folder / "test_images").rglob(f"{image_id}.png")
        link.rename(tmp_path / name)
        link.symlink_to(tmp_path / name)
    (folder / "test_images/1/103.png").unlink()
    assert FolderSource(folder, PREPARE, workers=0).files == ["100.png", "IM 0001", "102.png", ""]
