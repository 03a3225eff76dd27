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

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.strategies import STRATEGIES

Array = np.ndarray
# Basis functions of (depth, agents) for each part.
_BASES = {
    "linear": lambda d, n: [np.ones_like(d), d],
    "quadratic": lambda d, n: [np.ones_like(d), d, d * d],
    "packed": lambda d, n: [np.ones_like(d), n, d * n],  # a step of n agents, each looking back on d tokens
}
# Part: (column of a run, basis, the strategies that it is fitted for, one by one or (None) all together).
_PARTS = {
    "prefill": ("prefill_ms", "quadratic", None),
    "capture": ("capture_ms", "linear", ("swarmkv", "pooled")),
    "activation": ("activation_ms", "linear", ("swarmkv", "pooled", "shared", "batched")),
    "context": ("context_ms", "linear", ("naive",)),
    "branch": ("branch_ms", "linear", ("naive", "swarmkv", "pooled", "shared")),
    "answer": ("generate_ms", "linear", ("naive", "swarmkv", "pooled", "shared")),
    "packed branch": ("branch_ms", "packed", ("batched",)),
    "packed answer": ("generate_ms", "packed", ("batched",)),
    "rest": ("rest_ms", "linear", ("naive", "swarmkv", "pooled", "shared", "batched")),
}


@dataclass(frozen=True)
class CostModel:
    """Coefficients by (part, strategy or None for all); use ``fit``, ``predict``, ``bound`` and ``break_even``."""

    coefficients: dict[tuple[str, str | None], Array]
    choose_ms: float

    @classmethod
    def fit(cls, runs: pd.DataFrame) -> "CostModel":
        """Least squares of the relative errors over a sweep's runs, part by part.

        Raises SwarmKVError when naive is missing, or there are too few depths: three carry a parabola.
        """
        depths = runs.depth.nunique() if len(runs) else 0
        if depths < 3 or "naive" not in set(runs.strategy):
            raise SwarmKVError(f"the cost model needs naive and at least 3 depths, got {depths}: measure a larger grid")
        if "batched" in set(runs.strategy) and runs.n_agents.nunique() < 2:
            raise SwarmKVError("batched needs at least 2 numbers of agents, got 1: measure more, or leave it out")
        runs = runs.assign(rest_ms=_rest(runs))
        coefficients = {}
        for part, (column, basis, strategies) in _PARTS.items():
            for strategy in (None,) if strategies is None else strategies:
                rows = runs if strategy is None else runs[runs.strategy == strategy]
                if len(rows):
                    coefficients[part, strategy] = _least_squares(rows, column, basis)
        choose = float((runs.ttft_ms - runs.activation_ms - runs.branch_ms).median())
        return cls(coefficients, choose)

    @property
    def strategies(self) -> list[str]:
        """The strategies that were measured."""
        return [name for name in STRATEGIES if ("rest", name) in self.coefficients]

    def predict(self, depths: Sequence[int], n_agents: Sequence[int], strategies: Sequence[str] = ()) -> pd.DataFrame:
        """A row a (depth, agents, strategy) of the product, with a sweep's column names for what is predicted."""
        unknown = set(strategies) - set(self.strategies)
        if unknown or min(*depths, *n_agents) < 1:
            raise SwarmKVError(f"strategies {sorted(unknown)} were not measured, or a depth or agents below 1")
        d, n = (axis.ravel().astype(float) for axis in np.meshgrid(depths, n_agents, indexing="ij"))
        frames = [self._predict(name, d, n) for name in strategies or self.strategies]
        return pd.concat(frames, ignore_index=True)

    def speedup(self, depths: Sequence[int], n_agents: Sequence[int], strategy: str) -> Array:
        """End to end, naive over the strategy: (depths, agents)."""
        naive, ours = (self.predict(depths, n_agents, [name]).end_to_end_ms for name in ("naive", strategy))
        return (naive / ours).to_numpy().reshape(len(depths), len(n_agents))

    def bound(self, depths: Sequence[int], n_agents: Sequence[int]) -> Array:
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

    def _part(self, part: str, strategy: str | None, d: Array, n: Array) -> Array:
        if (part, strategy) not in self.coefficients:
            return np.zeros_like(d)
        basis = _BASES[_PARTS[part][1]](d, n)
        return self.coefficients[part, strategy] @ np.array(basis)

    def _predict(self, strategy: str, d: Array, n: Array) -> pd.DataFrame:
        is_naive, is_packed = strategy == "naive", strategy == "batched"
        prefill = self._part("prefill", None, d, n)
        capture = self._part("capture", strategy, d, n)
        activation = (
            self._part("context", strategy, d, n) + prefill if is_naive else self._part("activation", strategy, d, n)
        )
        packed = "packed " if is_packed else ""
        branch = self._part(packed + "branch", strategy, d, n)
        answer = self._part(packed + "answer", strategy, d, n)
        once = 0.0 if is_naive else prefill + capture
        each = activation + branch + self.choose_ms + answer
        total = once + (n * activation + branch + self.choose_ms + answer if is_packed else n * each)
        return pd.DataFrame(
            {
                "strategy": strategy,
                "depth": d.astype(int),
                "n_agents": n.astype(int),
                "prefill_ms": prefill,
                "activation_ms": activation,
                "branch_ms": branch,
                "ttft_ms": activation + branch + self.choose_ms,
                "generate_ms": answer,
                "end_to_end_ms": total + self._part("rest", strategy, d, n),
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
    likewise. A row a (depth, agents, strategy): measured medians, predictions (predicted_...), relative errors
    (error_...).
    """
    metrics = ["ttft_ms", "end_to_end_ms"]
    key = ["strategy", "depth", "n_agents"]
    frames = []
    for _, hidden in runs.groupby(["depth", "n_agents"] if by == "point" else by):
        model = CostModel.fit(runs.drop(index=hidden.index))
        axes = (sorted(hidden[axis].unique()) for axis in ("depth", "n_agents"))
        predicted = model.predict(*axes, list(hidden.strategy.unique())).set_index(key)[metrics]
        frames.append(hidden.groupby(key)[metrics].median().join(predicted.add_prefix("predicted_")))
    table = pd.concat(frames).reset_index()
    for metric in metrics:
        table[f"error_{metric}"] = table[f"predicted_{metric}"] / table[metric] - 1
    return table


def _rest(runs: pd.DataFrame) -> pd.Series:
    """End to end less the parts that are modelled: making contexts that no agent waits for, and Python between them."""
    is_packed = runs.strategy == "batched"
    after = runs.ttft_ms - runs.activation_ms + runs.generate_ms
    once = np.where(runs.strategy == "naive", 0.0, runs.prefill_ms + runs.capture_ms)
    parts = once + runs.n_agents * runs.activation_ms + np.where(is_packed, 1, runs.n_agents) * after
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
