"""What the tests share: models, questions, how often to repeat, and one core for each of pytest-xdist's workers."""

import os
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from gguf import GGUFReader

import swarmkv_lab as lab
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_studies.common.twins import Sizes, Writer, write_twin

pytest_plugins = ["browsing"]
ROOT = Path(__file__).parent.parent
SOAK = os.environ.get("SWARMKV_SOAK") == "1"
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


def often(n: int) -> int:
    """How often something is repeated that is marked as soak: n times in make soak and make test-all, else a tenth."""
    return n if SOAK else max(1, n // 10)


def usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


ALL_CORES = usable_cores()


def pytest_configure(config):
    """Each worker has a core to itself, and so one thread of llama.cpp; its kernels and processes inherit that."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {ALL_CORES[int(worker.removeprefix("gw")) % len(ALL_CORES)]})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return min(len(ALL_CORES), 8)


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_soak.py"))


@pytest.fixture
def all_cores():
    """Threads and processes that this test starts may use every core, and so really meet."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, before)


def load_shape(name: str, folder: Path) -> lab.Model:
    return lab.load_model(write_twin(folder / "twin.gguf", SHAPES[name]))


@pytest.fixture(scope="session")
def twin(tmp_path_factory):
    with load_shape("two layers", tmp_path_factory.mktemp("twin")) as model:
        yield model


class SpeakingTwin(Writer):
    """The default model's vocabulary and chat template, with next to no weights: it speaks, without sense."""

    def metadata(self):
        super().metadata()
        del self.gguf.kv_data[0]["tokenizer.ggml.model"]  # "no_vocab"
        with mock.patch.object(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8)):  # a third of the time
            fields = GGUFReader(lab.model_path()).fields
        for name, field in fields.items():
            if name.startswith("tokenizer."):
                self.gguf.add_key_value(name, field.contents(), *field.types[:2])


def write_speaker(path: Path, n_layer: int = 4) -> Path:
    SpeakingTwin(path, KVGeometry(n_layer, 3, 64, 64, 8192), Sizes(64, 64, 49_152, tied=True)).write()
    return path


@pytest.fixture(scope="session")
def speaker_path(tmp_path_factory):
    """For what needs text, but not the sense of it: about a three hundredth of the default model's work."""
    return write_speaker(tmp_path_factory.mktemp("speaker") / "speaker.gguf")


@pytest.fixture(scope="session")
def speaker(speaker_path):
    with lab.load_model(speaker_path) as model:
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


@pytest.fixture
def listening():
    """Ctrl-C raises, also where this process was started in the background and told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
