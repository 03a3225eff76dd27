"""Figures of peers: the lab's strategies beside other programs, and beside llama.cpp's own benchmarks."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_studies.common.costmodel import packed_strategies
from swarmkv_studies.common.style import OURS, STRATEGY, headline, plain_numbers, sheet
from swarmkv_studies.peers.verdict import AT_ONCE, FEW_PERCENT, IN_TURNS, PREFILL, SERVED_AT_ONCE, factor, standing
from swarmkv_studies.peers.verdict import verdict as judged

_PEER = "#555555"
_QUESTIONS = {
    IN_TURNS: ("one after another", "last agent's TTFT from its turn, ms"),
    AT_ONCE: ("all at once", "until the last answer, ms"),
    PREFILL: ("the prefill alone", "prefill of the document, ms"),
}
_SHOWN = 3
"""peers per panel: the fastest ones"""


def verdict(runs: pd.DataFrame, caption: str = "") -> Figure:
    """The lab against the fastest peers with the most agents: in turns, all at once, and the prefill alone.

    Bars are medians, dots are runs. runs: of one comparison with peers at one depth (see peers.verdict).
    """
    table = judged(runs, list(STRATEGY))
    most = runs[(runs.n_agents == runs.n_agents.max()) & (runs.strategy != "naive")]
    median = most.groupby("strategy", sort=False).median(numeric_only=True)
    together = packed_strategies(runs)
    times = {IN_TURNS: "last_turn_ttft_ms", AT_ONCE: "end_to_end_ms", PREFILL: "prefill_ms"}
    columns = {
        IN_TURNS: median.last_turn_ttft_ms.drop(together, errors="ignore"),
        AT_ONCE: median.end_to_end_ms,
        PREFILL: median.prefill_ms[median.prefill_ms > 0],
    }
    questions = [question for question in _QUESTIONS if question in table.index]
    about = f"{runs.depth.iloc[0]:,} tokens; a tie: ratios within a round reach within {FEW_PERCENT - 1:.0%} of 1"
    with sheet(3.3, f"{caption}\n{about}".strip()) as figure:
        for ax, question in zip(figure.subplots(1, len(questions), squeeze=False)[0], questions, strict=True):
            row, theirs = table.loc[question], columns[question].drop(list(STRATEGY), errors="ignore").sort_values()
            shown = pd.concat([pd.Series({row.ours: row.ours_ms}), theirs[:_SHOWN]])
            if question == AT_ONCE and SERVED_AT_ONCE in table.index:
                slots = table.loc[SERVED_AT_ONCE]
                shown[slots.peer] = slots.peer_ms
            ax.barh(shown.index, shown, 0.66, color=[OURS] + [_PEER] * (len(shown) - 1))
            names = most.strategy.replace(dict.fromkeys(STRATEGY, row.ours)) if question == PREFILL else most.strategy
            runs_ms = most[times[question]][names.isin(shown.index)]
            ax.plot(runs_ms, names[runs_ms.index], "o", color="#222222", markersize=3.5, markeredgecolor="white")
            for y, end in enumerate(runs_ms.groupby(names).max()[shown.index]):
                ax.text(end, y, f"  {shown.iloc[y]:,.0f}", va="center", fontsize=8.5)
            ax.set(xlim=(0, 1.3 * runs_ms.max()))
            ax.set_xlabel(f"{_QUESTIONS[question][1]}\n(measured)", fontsize=8.5)
            says = _at_once(table) if question == AT_ONCE else row.words
            ax.set_title(f"{_QUESTIONS[question][0]}:\n{fill(says, 25)}", fontsize=8.5)
            ax.tick_params(axis="y", length=0, labelsize=8.5)
            ax.xaxis.set_major_locator(MaxNLocator(3))
            plain_numbers(ax.xaxis)
            ax.invert_yaxis()
        forms = {IN_TURNS: "{} in turns", AT_ONCE: "{} at once", PREFILL: "prefill {}"}
        parts = [forms[question].format(standing(table.loc[question])) for question in questions]
        n = int(most.n_agents.iloc[0])
        key = {f"the fastest of the lab's strategies, {n} agents": OURS, "the fastest peers": _PEER}
        headline(figure, f"Against the best: {', '.join(parts)}", key)
    return figure


def _at_once(table: pd.DataFrame) -> str:
    """All agents at once: against the best peer, and if ours is ahead, against the best that takes all at once."""
    best = table.loc[AT_ONCE]
    slots = table.loc[SERVED_AT_ONCE] if SERVED_AT_ONCE in table.index else best
    ahead = slots.peer != best.peer and min(best.ratio, slots.ratio) > 1
    return f"{best.words}, {factor(slots.ratio)} as {slots.peer}" if ahead else best.words
