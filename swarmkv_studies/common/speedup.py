"""A speed-up: the median, over the rounds, of naive's time over a strategy's in the same round.

A machine changes its speed within minutes: other programs, its clock, heat. The strategies take turns within a round,
so both sides of such a ratio are from about the same moment. What still changes in between is seen as spread: a
speed-up is given with its quartiles and the number of its rounds.
"""

from collections.abc import Sequence

import pandas as pd

from swarmkv_lab.fanout.recorder import BASELINE

ROUND = ["depth", "n_agents", "repeat"]
_FEW_PERCENT = 1.05
QUARTILES = {"low": 0.25, "median": 0.5, "high": 0.75}


def speedups(
    runs: pd.DataFrame, time: str = "end_to_end_ms", by: Sequence[str] = ("depth", "n_agents", "strategy")
) -> pd.DataFrame:
    """Quartiles of the ratios over the rounds: a row per depth, number of agents and strategy.

    runs: of a bench or a sweep, a row per run. Columns low, median, high and rounds. Without naive there are no rows,
    and a round without it does not count.
    """
    naive = runs[runs.strategy == BASELINE].set_index(ROUND)[time].rename("naive")
    ratio = runs.join(naive, on=ROUND).naive / runs[time]
    each = runs.assign(ratio=ratio).dropna(subset="ratio").groupby(list(by), sort=False).ratio
    return pd.DataFrame({name: each.quantile(q) for name, q in QUARTILES.items()} | {"rounds": each.size()})


def times(ratio: float) -> str:
    """A factor with three digits: 1.90x, 52.3x, 151x."""
    return f"{ratio:.{max(0, 3 - len(str(int(ratio))))}f}x"


def factor(ratio: float) -> str:
    """A factor with two digits, but three below 2: 1.95x, 8.2x, 52x."""
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def with_spread(row: pd.Series) -> str:
    """A speed-up as text: 1.86x (1.83 to 1.88); row: of ``speedups``. One round has no quartiles."""
    if row.rounds < 2:
        return times(row["median"])
    return f"{times(row['median'])} ({times(row.low)[:-1]} to {times(row.high)[:-1]})"


def quartiles(ratios: pd.Series) -> pd.Series:
    """low, median and high of rounds' ratios of two times."""
    return ratios.quantile(list(QUARTILES.values())).set_axis(list(QUARTILES))


def as_words(row: pd.Series) -> str:
    """Who is ahead by how much: "a tie", "1.23x ahead" or "1.95x behind"; row: of ``quartiles``.

    It is a tie if 1 is between the quartiles, or within 5 % of the median.
    """
    ratio = row["median"]
    if row.low <= 1 <= row.high or 1 / _FEW_PERCENT <= ratio <= _FEW_PERCENT:
        return "a tie"
    return f"{factor(ratio)} ahead" if ratio > 1 else f"{factor(1 / ratio)} behind"
