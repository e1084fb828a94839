"""What every test shares: one thread, no network, a cache of its own."""

import os
from pathlib import Path

import pytest
import torch

import nets

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


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own for one test."""
    monkeypatch.setenv("PERTURBLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def net() -> nets.PixelModel:
    """The small net that every attack meets."""
    return nets.trained(classes=nets.CLASSES)


@pytest.fixture
def few() -> nets.Images:
    """Eight images of that net's classes, the last with a wrong label."""
    x, y = nets.right_ones(nets.trained(classes=nets.CLASSES), 8, nets.CLASSES)
    return x, torch.cat([y[:-1], (y[-1:] + 1) % nets.CLASSES])


@pytest.fixture
def many() -> nets.Images:
    """Two hundred digits of all classes."""
    x, y = nets.digits()
    return x[:200], y[:200]
