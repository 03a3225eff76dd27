"""CostModel: what every strategy takes at any depth and for any number of agents, fitted to measured runs.

All times are in milliseconds. A run is put together from its parts: the prefill a + b d + c d^2 (attention looks back
on everything before it), and parts that grow at most linearly with the depth d, because each of their tokens looks back
on d others or each of their bytes belongs to one of d cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.analysis.timeline import BASELINE
from swarmkv_lab.errors import SwarmKVError

Array = np.ndarray
Counts = Sequence[int] | np.ndarray
# Basis functions of (depth, agents) for each part.
_BASES = {
    "linear": lambda d, n: [np.ones_like(d), d],
    "quadratic": lambda d, n: [np.ones_like(d), d, d * d],
    "packed": lambda d, n: [np.ones_like(d), n, d * n],  # a step of n agents, each looking back on d tokens
}
# Part: (column of a run, basis, basis where agents are packed). The prefill is fitted for all strategies together.
_PREFILL = ("prefill_ms", "quadratic", "quadratic")
_PARTS = {
    "capture": ("capture_ms", "linear", "linear"),
    "activation": ("activation_ms", "linear", "linear"),
    "branch": ("branch_ms", "linear", "packed"),
    "answer": ("generate_ms", "linear", "packed"),
    "rest": ("rest_ms", "linear", "linear"),
}
# Naive's activation is its own context and its own prefill.
_BASELINE_PARTS = _PARTS | {"activation": ("context_ms", "linear", "linear")}


@dataclass(frozen=True)
class CostModel:
    """Coefficients by (part, strategy or None for all); use ``fit``, ``predict``, ``bound`` and ``break_even``."""

    coefficients: dict[tuple[str, str | None], Array]
    sample_ms: float
    """choosing a token"""
    packed: tuple[str, ...]
    """the strategies that answer all agents at the same time"""

    @classmethod
    def fit(cls, runs: pd.DataFrame) -> "CostModel":
        """Least squares of the relative errors over a sweep's runs, part by part.

        Raises SwarmKVError when naive is missing, or there are too few depths: three carry a parabola.
        """
        depths = runs.depth.nunique() if len(runs) else 0
        if depths < 3 or BASELINE not in set(runs.strategy):
            raise SwarmKVError(f"the cost model needs naive and at least 3 depths, got {depths}: measure a larger grid")
        packed = tuple(packed_strategies(runs))
        if packed and runs.n_agents.nunique() < 2:
            raise SwarmKVError(
                f"{', '.join(packed)} needs at least 2 numbers of agents, got 1: measure more, or leave it out"
            )
        runs = runs.assign(rest_ms=_rest(runs))
        coefficients: dict[tuple[str, str | None], Array] = {("prefill", None): _least_squares(runs, *_PREFILL[:2])}
        for strategy, rows in runs.groupby("strategy", sort=False):
            for part, (column, alone, together) in _parts(strategy).items():
                coefficients[part, strategy] = _least_squares(rows, column, together if strategy in packed else alone)
        sample = float((runs.ttft_ms - runs.activation_ms - runs.branch_ms).median())
        return cls(coefficients, sample, packed)

    @property
    def strategies(self) -> list[str]:
        """The strategies that were measured."""
        return [name for part, name in self.coefficients if part == "rest" and name is not None]

    def predict(self, depths: Counts, n_agents: Counts, strategies: Sequence[str] = ()) -> pd.DataFrame:
        """A row per (depth, agents, strategy) of the product, with a sweep's column names for what is predicted."""
        unknown = set(strategies) - set(self.strategies)
        if unknown or min(*depths, *n_agents) < 1:
            raise SwarmKVError(f"strategies {sorted(unknown)} were not measured, or a depth or agents below 1")
        d, n = (axis.ravel().astype(float) for axis in np.meshgrid(depths, n_agents, indexing="ij"))
        frames = [self._predict(name, d, n) for name in strategies or self.strategies]
        return pd.concat(frames, ignore_index=True)

    def speedup(self, depths: Counts, n_agents: Counts, strategy: str) -> Array:
        """End to end, naive over the strategy: (depths, agents)."""
        naive, ours = (self.predict(depths, n_agents, [name]).end_to_end_ms for name in ("naive", strategy))
        return (naive / ours).to_numpy().reshape(len(depths), len(n_agents))

    def bound(self, depths: Counts, n_agents: Counts) -> Array:
        """``bound`` of naive's predictions: (depths, agents)."""
        naive = self.predict(depths, n_agents, ["naive"])
        return bound(naive, naive.n_agents).to_numpy().reshape(len(depths), len(n_agents))

    def break_even(self, strategy: str, n_agents: int = 2, deepest: int = 8192) -> int | None:
        """The shallowest document from which the strategy is faster end to end than naive; None if there is none."""
        depths = range(1, deepest + 1)
        faster = self.speedup(depths, [n_agents], strategy)[:, 0] > 1
        slower = np.flatnonzero(~faster)
        first = 0 if len(slower) == 0 else int(slower[-1]) + 1
        return None if first == len(faster) else first + 1

    def _part(self, part: str, strategy: str, d: Array, n: Array) -> Array:
        basis = _parts(strategy)[part][2 if strategy in self.packed else 1]
        return self.coefficients[part, strategy] @ np.array(_BASES[basis](d, n))

    def _predict(self, strategy: str, d: Array, n: Array) -> pd.DataFrame:
        prefill = self.coefficients["prefill", None] @ np.array(_BASES[_PREFILL[1]](d, n))
        capture, activation, branch, answer, rest = (self._part(part, strategy, d, n) for part in _PARTS)
        once = prefill + capture
        if strategy == BASELINE:
            once, activation = np.zeros_like(d), activation + prefill
        after = branch + self.sample_ms + answer
        total = once + n * activation + (after if strategy in self.packed else n * after)
        return pd.DataFrame(
            {
                "strategy": strategy,
                "depth": d.astype(int),
                "n_agents": n.astype(int),
                "prefill_ms": prefill,
                "activation_ms": activation,
                "branch_ms": branch,
                "ttft_ms": activation + branch + self.sample_ms,
                "generate_ms": answer,
                "end_to_end_ms": total + rest,
            }
        )


def bound(naive: pd.Series | pd.DataFrame, n_agents: int | pd.Series) -> Any:
    """N(P+B)/(P+N*B): the most that branches decoded one after another can gain end to end.

    P is naive's activation, B an agent's own work: its branch, choosing a token and its answer.
    """
    p, b = naive.activation_ms, naive.ttft_ms - naive.activation_ms + naive.generate_ms
    return n_agents * (p + b) / (p + n_agents * b)


def held_out(runs: pd.DataFrame, by: str = "point") -> pd.DataFrame:
    """Every point of a grid predicted by a model that has not seen it: by="point", its (depth, agents).

    by="depth" is harder: the model has not seen the depth at all, and the deepest one is an extrapolation; "n_agents"
    likewise. A row per (depth, agents, strategy): measured medians, predictions (predicted_...), relative errors
    (error_...).
    """
    metrics = ["ttft_ms", "end_to_end_ms"]
    key = ["strategy", "depth", "n_agents"]
    frames = []
    for _, hidden in runs.groupby(["depth", "n_agents"] if by == "point" else by):
        model = CostModel.fit(runs.drop(index=hidden.index))
        depths, n_agents = (sorted(hidden[axis].unique()) for axis in ("depth", "n_agents"))
        predicted = model.predict(depths, n_agents, list(hidden.strategy.unique())).set_index(key)[metrics]
        frames.append(hidden.groupby(key)[metrics].median().join(predicted.add_prefix("predicted_")))
    table = pd.concat(frames).reset_index()
    for metric in metrics:
        table[f"error_{metric}"] = table[f"predicted_{metric}"] / table[metric] - 1
    return table


def packed_strategies(runs: pd.DataFrame) -> list[str]:
    """The names of those, in a table of runs, that answer all agents at the same time: there are no turns."""
    if "packed" not in runs:
        raise SwarmKVError("the runs have no column packed, which says who answers all agents at once: measure again")
    return list(runs.strategy[runs.packed.astype(bool)].unique())


def _parts(strategy: str) -> dict[str, tuple[str, str, str]]:
    return _BASELINE_PARTS if strategy == BASELINE else _PARTS


def _rest(runs: pd.DataFrame) -> pd.Series:
    """End to end less the parts that are modelled: making contexts that no agent waits for, and Python between them."""
    after = runs.ttft_ms - runs.activation_ms + runs.generate_ms
    once = np.where(runs.strategy == BASELINE, 0.0, runs.prefill_ms + runs.capture_ms)
    parts = once + runs.n_agents * runs.activation_ms + np.where(runs.packed, 1, runs.n_agents) * after
    return (runs.end_to_end_ms - parts).clip(lower=0.0)


def _least_squares(rows: pd.DataFrame, column: str, basis: str) -> Array:
    """Coefficients of the least squared relative errors: a short document counts as much as a long one.

    None is below zero, as no work takes less than no time: where one would be, the others are fitted without it.
    """
    d, n = rows.depth.to_numpy(float), rows.n_agents.to_numpy(float)
    y = rows[column].to_numpy(float)
    weight = 1 / np.maximum(y, max(np.median(y) / 10, 1e-3))  # what is next to nothing need not be met to a percent
    design = np.array(_BASES[basis](d, n)).T * weight[:, None]
    kept = np.arange(design.shape[1])
    while True:
        fitted = np.linalg.lstsq(design[:, kept], y * weight, rcond=None)[0]
        if (fitted >= 0).all() or len(kept) == 1:
            coefficients = np.zeros(design.shape[1])
            coefficients[kept] = np.maximum(fitted, 0.0)
            return coefficients
        kept = np.delete(kept, fitted.argmin())
