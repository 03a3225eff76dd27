"""Full-size twins: GGUFs with all of a model's sizes and random weights: its speed without its words."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import cache_folder, replacing
from swarmkv_lab.sizing.catalogue import geometry
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_studies.common.twins import Sizes, Writer, is_twin

# From the config.json of each model's page, as the catalogue.
FULL_SIZES = {
    "smollm2-135m": Sizes(576, 1536, 49_152, 9, tied=True),
    "qwen2.5-0.5b": Sizes(896, 4864, 151_936, 14, tied=True),
    "qwen2.5-7b": Sizes(3584, 18_944, 152_064, 28),
}
_BLOCK = np.dtype([("scale", "<f2"), ("weights", np.int8, 32)])  # of Q8_0
_PERIOD = 1_000_003  # blocks that are drawn; a prime, so that no row begins where one before it began


def full_size_twin(name: str) -> Path:
    """The path of a GGUF in Q8_0 with the sizes of a model of the catalogue, written into the cache folder once.

    Its snapshots and all of its times are the model's, if that is in Q8_0 too; what it answers means nothing. It knows
    token ids only. qwen2.5-7b takes 8.1 GB. Raises SwarmKVError for a name that is not in FULL_SIZES.
    """
    if name not in FULL_SIZES:
        raise SwarmKVError(f"no full-size twin of {name!r}: the sizes are known of {', '.join(FULL_SIZES)}")
    path, shape = cache_folder("twins") / f"{name}-twin.Q8_0.gguf", geometry(name)
    if not is_twin(path, shape):
        with replacing(path) as fresh:
            FullSize(Path(fresh.name), shape, FULL_SIZES[name]).write()
    return path


class FullSize(Writer):
    """Gigabytes in seconds: each matrix is a piece, where chance says, of a long ribbon of random blocks."""

    def __init__(self, path: Path, geometry: KVGeometry, sizes: Sizes) -> None:
        super().__init__(path, geometry, sizes)
        self._ribbons: dict[int, np.ndarray] = {}

    def matrix(self, name: str, n_out: int, n_in: int, *heads: int) -> None:
        """A piece of the ribbon, Q8_0."""
        n_blocks = n_out * n_in // 32
        start = int(self.rng.integers(_PERIOD))
        rows = self._ribbon(n_in, _PERIOD + n_blocks)[start : start + n_blocks].view(np.uint8).reshape(n_out, -1)
        self.gguf.add_tensor(f"{name}.weight", rows, raw_dtype=GGMLQuantizationType.Q8_0)

    def _ribbon(self, n_in: int, n_blocks: int) -> np.ndarray:
        """At least so many blocks of weights of variance 1 / n_in, as a twin's are; the same ones again and again."""
        if n_in not in self._ribbons:
            self._ribbons[n_in] = drawn = np.empty(_PERIOD, _BLOCK)
            drawn["weights"] = weights = self.rng.integers(-127, 128, (_PERIOD, 32), np.int8)
            drawn["scale"] = 1 / (weights[:1000].std() * np.sqrt(n_in))
        if len(self._ribbons[n_in]) < n_blocks:
            self._ribbons[n_in] = np.resize(self._ribbons[n_in][:_PERIOD], n_blocks)
        return self._ribbons[n_in]
