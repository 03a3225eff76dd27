from pathlib import Path

import numpy as np
import pytest

import swarmkv_lab as lab
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.sizing.twins import write_twin

ROOT = Path(__file__).parent.parent
QUESTIONS = [
    "Which key is hard-coded in the source?",
    "Which licence is a risk?",
    "How much does hosting cost a month?",
]
SHAPES = {
    "two layers": KVGeometry(2, 2, 16, 16, 4096),
    "one layer": KVGeometry(1, 1, 64, 64, 4096),
    "80 layers": KVGeometry(80, 1, 32, 32, 4096),
    "wide heads": KVGeometry(2, 3, 96, 96, 4096),  # 3 * 96 is not the embedding's 32
    "keys wider than values": KVGeometry(2, 4, 96, 64, 4096),
    "latent attention": KVGeometry(3, 1, 96, 0, 4096),
    "sliding window": KVGeometry(4, 2, 32, 32, 4096, 32, (True, True, False, True)),
}


def needs(module, name):
    """Skip a test on a system that has no such call."""
    return pytest.mark.skipif(not hasattr(module, name), reason=f"this system has no {module.__name__}.{name}")


def load_shape(name: str, folder: Path) -> lab.Model:
    return lab.load_model(write_twin(folder / "twin.gguf", SHAPES[name]))


@pytest.fixture(scope="session")
def twin(tmp_path_factory):
    with load_shape("two layers", tmp_path_factory.mktemp("twin")) as model:
        yield model


@pytest.fixture(scope="session")
def real():
    with lab.load_model() as model:
        yield model


@pytest.fixture(scope="session")
def dossier(real):
    return real.tokenize(lab.load_document("dossier"))[:400]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def document(rng):
    return rng.integers(0, 256, 300, dtype=np.int32)


@pytest.fixture
def question(rng):
    return rng.integers(0, 256, 9, dtype=np.int32)
