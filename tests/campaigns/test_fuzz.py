"""A short fuzzing campaign, the beginning of the long one of `make campaign`."""

import faulthandler
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from data_prep.imageio import codecs
from tests.campaigns import fuzz as campaigns
from tests.campaigns.fuzz import Campaign, Seed, fuzz, make, write_seeds


def test_mutated_phantoms_are_images_or_image_errors(tmp_path: Path) -> None:
    campaign = fuzz(write_seeds(tmp_path / "seeds"), range(600))
    assert campaign.findings == []
    assert campaign.outcomes.total() == 600
    assert campaign.outcomes["image"] > 40  # the changes leave something to decode
    assert campaign.outcomes["frame"] > 20
    assert {"truncated", "decode_error", "bad_value", "parse_error", "unsupported"} <= set(campaign.outcomes)


def test_mutated_odd_real_files_are_images_or_image_errors(real_data: Path, tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds", real_data)
    assert len(seeds) > 40
    assert fuzz(seeds, range(300), seed=1).findings == []


def test_frames_of_all_compressed_encodings_are_thrown_at_the_decoders_themselves(tmp_path: Path) -> None:
    frames = [Seed.read(path) for path in write_seeds(tmp_path / "seeds") if path.suffix == ".frame"]
    compressed = codecs.SUPPORTED - codecs.NATIVE
    assert {frame.syntax for frame in frames} >= {
        name for name in compressed if name.endswith((".5", ".50", ".70", ".80", ".90", ".201"))
    }
    for number in range(200):
        sound, changed, _ = make(frames, 0, number)
        if changed.is_cut:
            assert sound.content.startswith(changed.content)


def test_an_execution_is_the_same_in_every_campaign(tmp_path: Path) -> None:
    seeds = [Seed.read(path) for path in write_seeds(tmp_path / "seeds")]
    assert make(seeds, 0, 77)[1] == make(seeds, 0, 77)[1]
    assert make(seeds, 0, 77)[1] != make(seeds, 1, 77)[1]


def misbehave(path: Path, seeds: list[Seed], seed: int, number: int) -> str:
    """Executions 1 to 4 crash, hang, take too much memory, raise; the others are images."""
    if number == 1:
        faulthandler.disable()  # pytest's: this crash is meant, and its dump would look like a failure
        os.abort()
    if number == 2:
        time.sleep(3600)
    if number == 3:
        bytearray(2**40)
    if number == 4:
        raise KeyError(number)
    return "image"


def test_crashes_hangs_and_what_is_not_caught_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign itself outlives them."""
    monkeypatch.setattr(campaigns, "HANGS_AFTER_S", 1.0)
    monkeypatch.setattr(campaigns, "execute", misbehave)
    fork = multiprocessing.get_context("fork")  # which takes `misbehave` with it
    monkeypatch.setattr(campaigns.multiprocessing, "get_context", lambda _kind: fork)
    campaign: Campaign = fuzz(write_seeds(tmp_path / "seeds"), range(6), out=tmp_path / "out")
    said = [finding.split(":")[0:2] for finding in campaign.findings]
    assert [kind.strip() for _, kind in said] == ["crash", "hangs", "MemoryError", "KeyError"]
    assert campaign.outcomes["image"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.dcm", "2.dcm", "3.dcm", "4.dcm"]
