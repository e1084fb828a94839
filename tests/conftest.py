"""What every test shares: one thread, no network, a cache of its own."""

import os
from pathlib import Path

import pytest
import torch

# Two threads that wait for each other on a busy machine are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PERTURBLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder with real data and the source documents."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is missing: its real data and documents are not checked")
    return folder
