"""A clock that a machine's changing speed does not bend: times counted in beats, a fixed piece of work.

A processor's speed changes within a run: other programs, its clock, its heat. So the same small decode, a beat, is
timed again and again between the steps of a run, off the run's clock. Where a beat takes longer, a second counts less.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Beats = Sequence[tuple[float, float]]
"""(when, how long) of each beat, in ms of a run's clock, by time."""


def in_beats(times_ms: Any, beats: Beats) -> np.ndarray:
    """Moments of a run's clock, ms, as the number of beats since its start: the integral of 1 / (a beat's ms).

    Between two beats the speed changes evenly; before the first and after the last it stays.
    """
    at, ms = np.array(beats, float).T
    times = np.asarray(times_ms, float)
    knots = np.concatenate([[min(0.0, at[0])], at, [max(at[-1], times.max(initial=0.0))]])
    rate = np.interp(knots, at, 1 / ms)
    total = np.concatenate([[0.0], np.cumsum(np.diff(knots) * (rate[1:] + rate[:-1]) / 2)])
    i = np.clip(np.searchsorted(knots, times, "right") - 1, 0, len(knots) - 2)
    return total[i] + (times - knots[i]) * (rate[i] + np.interp(times, at, 1 / ms)) / 2


def corrected(runs: pd.DataFrame) -> pd.DataFrame:
    """Measured runs, a row per run, with their times (..._ms) as the machine at its median speed would have taken.

    Where a run was timed in beats too (a column ..._beats), that is beats times the median beat of all these runs;
    other times of such a run are scaled as its end-to-end time is. Runs without beats stay as they are.
    """
    if "end_to_end_beats" not in runs:
        return runs
    beat = runs.beat_ms.median()
    scale = (runs.end_to_end_beats * beat / runs.end_to_end_ms).fillna(1.0)
    changed = {}
    for name in [name for name in runs if name.endswith("_ms") and name != "beat_ms"]:
        beats = runs.get(name.removesuffix("_ms") + "_beats")
        scaled = runs[name] * scale
        changed[name] = scaled if beats is None else (beats * beat).fillna(scaled)
    return runs.assign(**changed)
