"""Rope: rotary position embedding in numpy, as llama.cpp applies it to keys."""

import math
from dataclasses import dataclass

import numpy as np

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.llama.model import Model

_PLAIN, _HALVES = "plain", "halves"
_PAIRS = {0: _PLAIN, 2: _HALVES}  # llama.cpp's rope types: pairs (0,1), (2,3), ...; or (0,n/2), (1,n/2+1), ...


@dataclass(frozen=True)
class Rope:
    """Pairs of a vector's first ``n_rot`` elements turn by position / base**(2 i / n_rot)."""

    n_rot: int
    base: float
    pairs: str

    @classmethod
    def of(cls, model: Model) -> "Rope":
        """A model's; SwarmKVError where llama.cpp does more than to turn pairs, or not in all layers."""
        arch, kind = model.architecture, model.kind
        scaled = model.metadata.get(f"{arch}.rope.scaling.type", "none") != "none"
        if kind.rope or kind.rope_freqs or scaled:
            why = kind.rope or ("positions are scaled" if scaled else "each frequency has a factor")
            raise SwarmKVError(f"{model.name}: its RoPE is not plain ({why})")
        n_rot = int(model.metadata.get(f"{arch}.rope.dimension_count", model.geometry.head_dim_k))
        base = float(model.metadata.get(f"{arch}.rope.freq_base", 10_000))
        return cls(n_rot, base, _PAIRS[kind.rope_type])

    def turn(self, element: int) -> float:
        """Tokens in which this element of a vector, with the other of its pair, turns once; inf: it does not turn.

        Raises SwarmKVError for a negative element.
        """
        whole_number("element", element)
        if element >= self.n_rot:
            return math.inf
        i = element // 2 if self.pairs == _PLAIN else element % (self.n_rot // 2)
        return float(2 * math.pi * self.base ** (2 * i / self.n_rot))

    def rotate(self, vectors: np.ndarray, by: int | np.ndarray) -> np.ndarray:
        """Vectors (..., head_dim) turned on by so many positions, float64; ``by`` broadcasts with the rows (...)."""
        rows = np.broadcast_shapes(vectors.shape[:-1], np.shape(by))
        out = np.broadcast_to(vectors, (*rows, vectors.shape[-1])).astype(np.float64)
        i = np.arange(self.n_rot // 2)
        first, second = (2 * i, 2 * i + 1) if self.pairs == _PLAIN else (i, i + len(i))
        angle = np.asarray(by, np.float64)[..., None] * self.base ** (-2 * i / self.n_rot)
        x, y = out[..., first], out[..., second]
        out[..., first] = x * np.cos(angle) - y * np.sin(angle)
        out[..., second] = x * np.sin(angle) + y * np.cos(angle)
        return out
