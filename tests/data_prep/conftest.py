"""A folder of images and its cache, for all tests that only look at them."""

from pathlib import Path

import pytest

from tests.data_prep.data_folder import make_data, prepare_folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in RSNA layout; not to be changed."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preparing them leaves; not to be changed."""
    cache = tmp_path_factory.mktemp("prepared") / "cache"
    prepare_folder(data, cache)
    return cache
