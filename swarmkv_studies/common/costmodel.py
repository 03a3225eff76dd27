"""CostModel: the latencies of every strategy at any depth and number of agents, fitted to measured runs.

All times are in milliseconds, as they were measured. A run's time is the sum of its parts. The prefill takes
a + b d + c d^2 at depth d, because attention reads all tokens before the current one. The other parts grow at most
linearly with d, because each of their tokens attends to d tokens of the document, or because they move the bytes of d
cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE

Array = np.ndarray
Counts = Sequence[int] | np.ndarray
# Basis functions of (depth d, number of agents n).
_BASES = {
    "linear": lambda d, n: [np.ones_like(d), d],
    "quadratic": lambda d, n: [np.ones_like(d), d, d * d],
    "packed": lambda d, n: [np.ones_like(d), n, d * n],  # one step of n agents, each of which attends to d tokens
}
# Part: column of a run. The prefill is fitted once for all strategies, and so is what agents do in turns.
_PARTS = {
    "capture": "capture_ms",
    "activation": "activation_ms",
    "branch": "branch_ms",
    "answer": "generate_ms",
    "rest": "rest_ms",
}
# Naive's activation is a new context and a prefill; the prefill is fitted separately.
_BASELINE_PARTS = _PARTS | {"activation": "context_ms"}
_OWN = ("branch", "answer")  # an agent's own work: the same in turns by whatever strategy; packed agents do it together


@dataclass(frozen=True)
class CostModel:
    """Fitted coefficients by (part, strategy); the strategy is None for the prefill, which all share. From ``fit``."""

    coefficients: dict[tuple[str, str | None], Array]
    sample_ms: float
    """time to sample one token, ms"""
    packed: tuple[str, ...]
    """names of the strategies that answer all agents at the same time"""

    @classmethod
    def fit(cls, runs: pd.DataFrame) -> "CostModel":
        """Fit each part to a sweep's runs by least squares of the relative errors.

        Raises SwarmKVError if naive is missing, if there are fewer than 3 depths (a parabola needs 3), or if a packed
        strategy was measured with only one number of agents.
        """
        if missing := sorted({"strategy", "depth", "n_agents", "end_to_end_ms"} - set(runs)):
            raise SwarmKVError(f"these are no runs of a sweep: they have no {', '.join(missing)}")
        depths = runs.depth.nunique()
        if depths < 3 or BASELINE not in set(runs.strategy):
            raise SwarmKVError(f"the cost model needs naive and at least 3 depths, got {depths}: measure a larger grid")
        packed = tuple(packed_strategies(runs))
        if packed and runs.n_agents.nunique() < 2:
            raise SwarmKVError(
                f"{', '.join(packed)} needs at least 2 numbers of agents, got 1: measure more, or leave it out"
            )
        runs = runs.assign(rest_ms=_rest(runs, packed))
        coefficients: dict[tuple[str, str | None], Array] = {}
        coefficients["prefill", None] = _least_squares(runs, "prefill_ms", "quadratic")
        in_turns = runs[~runs.strategy.isin(packed)]
        for strategy, rows in runs.groupby("strategy", sort=False):
            for part, column in (_BASELINE_PARTS if strategy == BASELINE else _PARTS).items():
                alike = in_turns if part in _OWN and strategy not in packed else rows
                coefficients[part, strategy] = _least_squares(alike, column, _basis(part, strategy in packed))
        return cls(coefficients, float(runs.sample_ms.median()), packed)

    @property
    def strategies(self) -> list[str]:
        """The strategies that were measured."""
        return [name for part, name in self.coefficients if part == "rest" and name is not None]

    def predict(
        self, depths: Counts, n_agents: Counts, strategies: Sequence[str] = (), tokens_per_s: float | None = None
    ) -> pd.DataFrame:
        """Predicted times in ms, a row per (depth, agents, strategy), columns as in a sweep; default: all strategies.

        tokens_per_s: of a prefill on another machine, the same at every depth, with all other times of this one. Raises
        SwarmKVError for a strategy that was not measured, and for a depth, number of agents or speed that cannot be.
        """
        if tokens_per_s is not None and not tokens_per_s > 0:
            raise SwarmKVError(f"tokens_per_s={tokens_per_s!r:.40}: it must be above 0, such as 10_000 for a GPU")
        if unknown := set(strategies) - set(self.strategies):
            raise SwarmKVError(f"the cost model knows {', '.join(self.strategies)}, and not {sorted(unknown)}")
        for name, values in {"depths": depths, "n_agents": n_agents}.items():
            axis = np.asarray(values)
            if axis.ndim != 1 or axis.dtype.kind not in "iuf" or not axis.size or not axis.min() >= 1:
                raise SwarmKVError(f"{name}={values!r:.60}: numbers of at least 1, and at least one of them")
        d, n = (axis.ravel().astype(float) for axis in np.meshgrid(depths, n_agents, indexing="ij"))
        frames = [self._predict(name, d, n, tokens_per_s) for name in strategies or self.strategies]
        return pd.concat(frames, ignore_index=True)

    def speedup(self, depths: Counts, n_agents: Counts, strategy: str, tokens_per_s: float | None = None) -> Array:
        """Naive's end-to-end time divided by the strategy's: array (depths, agents). Arguments as in ``predict``."""
        naive, ours = (
            self.predict(depths, n_agents, [name], tokens_per_s).end_to_end_ms for name in ("naive", strategy)
        )
        return (naive / ours).to_numpy().reshape(len(depths), len(n_agents))

    def ideal(self, depths: Counts, n_agents: Counts) -> Array:
        """The ideal speed-up (function ``ideal``) from naive's predictions: array (depths, agents)."""
        naive = self.predict(depths, n_agents, ["naive"]).assign(sample_ms=self.sample_ms)
        return ideal(naive, naive.n_agents).to_numpy().reshape(len(depths), len(n_agents))

    def _predict(self, strategy: str, d: Array, n: Array, tokens_per_s: float | None) -> pd.DataFrame:
        packed = strategy in self.packed
        bases = {name: np.array(basis(d, n)) for name, basis in _BASES.items()}
        parts = (self.coefficients[part, strategy] @ bases[_basis(part, packed)] for part in _PARTS)
        capture, activation, branch, answer, rest = parts
        here = self.coefficients["prefill", None] @ bases["quadratic"]
        prefill = here if tokens_per_s is None else 1e3 * d / tokens_per_s
        once = prefill + capture
        if strategy == BASELINE:
            once, activation = np.zeros_like(d), activation + prefill
        after = branch + self.sample_ms + answer
        total = once + n * activation + (after if packed else n * after)
        times = {
            "prefill_ms": prefill,
            "activation_ms": activation,
            "branch_ms": branch,
            "generate_ms": answer,
            "last_ttft_ms": total + rest - answer,  # the last agent's first token; only its answer follows
            "end_to_end_ms": total + rest,
        }
        return pd.DataFrame({"strategy": strategy, "depth": d.astype(int), "n_agents": n.astype(int), **times})


def ideal(naive: pd.Series | pd.DataFrame, n_agents: int | pd.Series) -> Any:
    """N(P+B)/(P+N*B): the end-to-end speed-up if nothing but prefills is saved and agents answer one after another.

    P is naive's activation. B is an agent's own work: its branch, sampling its first token, and its answer.
    """
    p, b = naive.activation_ms, naive.branch_ms + naive.sample_ms + naive.generate_ms
    return n_agents * (p + b) / (p + n_agents * b)


def held_out(runs: pd.DataFrame, by: str = "point") -> pd.DataFrame:
    """Predict every point of a grid with a model that was fitted without it.

    by: what the model has not seen: "point", the same (depth, agents); "depth", all runs at that depth, so that the
    deepest is an extrapolation; "n_agents" likewise. Returns a row per (depth, agents, strategy): measured medians in
    ms, predictions (``predicted_...``) and relative errors (``error_...``).
    """
    metrics = ["last_ttft_ms", "end_to_end_ms"]
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
    """The names of the strategies in these runs that answer all agents at the same time, not in turns."""
    return list(runs.strategy[runs.packed.astype(bool)].unique())


def _basis(part: str, packed: bool) -> str:
    return "packed" if packed and part in _OWN else "linear"


def _rest(runs: pd.DataFrame, packed: Sequence[str]) -> pd.Series:
    """End-to-end time minus the modelled parts: creating contexts that no agent waits for, and Python code."""
    after = runs.branch_ms + runs.sample_ms + runs.generate_ms
    once = np.where(runs.strategy == BASELINE, 0.0, runs.prefill_ms + runs.capture_ms)
    parts = once + runs.n_agents * runs.activation_ms + np.where(runs.strategy.isin(packed), 1, runs.n_agents) * after
    return (runs.end_to_end_ms - parts).clip(lower=0.0)


def _least_squares(rows: pd.DataFrame, column: str, basis: str) -> Array:
    """Coefficients with the least squared relative errors: a short document counts as much as a long one.

    No coefficient is negative, because no work takes negative time: if one would be, the others are fitted without it.
    """
    d, n = rows.depth.to_numpy(float), rows.n_agents.to_numpy(float)
    y = rows[column].to_numpy(float)
    weight = 1 / np.maximum(y, max(np.median(y) / 10, 1e-3))  # times near 0 need no small relative error
    design = np.array(_BASES[basis](d, n)).T * weight[:, None]
    kept = np.arange(design.shape[1])
    while True:
        fitted = np.linalg.lstsq(design[:, kept], y * weight, rcond=None)[0]
        if (fitted >= 0).all() or len(kept) == 1:
            coefficients = np.zeros(design.shape[1])
            coefficients[kept] = np.maximum(fitted, 0.0)
            return coefficients
        kept = np.delete(kept, fitted.argmin())
