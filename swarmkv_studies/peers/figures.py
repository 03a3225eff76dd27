"""Figures of peers: the lab's strategies beside other programs, and beside llama.cpp's own benchmarks."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from swarmkv_studies.common.costmodel import bound, packed_strategies
from swarmkv_studies.common.style import BASELINE, DOTTED, OURS, STRATEGY, headline, plain_numbers, sheet
from swarmkv_studies.peers.verdict import AT_ONCE, FEW_PERCENT, IN_TURNS, PREFILL, SERVED_AT_ONCE, factor, standing
from swarmkv_studies.peers.verdict import verdict as judged

_PEER = "#555555"
_MARKERS = ("o", "s", "D", "^", "v")
_QUESTIONS = {
    IN_TURNS: ("one after another", "last agent's TTFT from its turn, ms"),
    AT_ONCE: ("all at once", "until the last answer, ms"),
    PREFILL: ("the prefill alone", "prefill of the document, ms"),
}
_SHOWN = 3
"""peers per panel: the fastest ones"""


def verdict(runs: pd.DataFrame, caption: str = "") -> Figure:
    """The lab against the fastest peers with the most agents: in turns, all at once, and the prefill alone.

    runs: of one comparison with peers at one depth (see peers.verdict, also for what a tie is).
    """
    table = judged(runs, list(STRATEGY))
    most = runs[(runs.n_agents == runs.n_agents.max()) & (runs.strategy != "naive")]
    median = most.groupby("strategy", sort=False).median(numeric_only=True)
    together = packed_strategies(runs)
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
            bars = ax.barh(shown.index, shown, 0.66, color=[OURS] + [_PEER] * (len(shown) - 1))
            ax.bar_label(bars, [f" {ms:,.0f}" for ms in shown], fontsize=8.5)
            ax.set(xlim=(0, 1.25 * shown.max()))
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


def peers_figure(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Strategies and peers at one depth, a marker per number of agents: the last agent's TTFT, and end to end.

    runs: of a comparison with naive and shared.
    """
    median = runs.groupby(["strategy", "n_agents"], sort=False).median(numeric_only=True)
    names = list(runs.strategy.unique())[::-1]
    agents = sorted(runs.n_agents.unique())
    markers = dict(zip(agents, _MARKERS, strict=False))
    in_turns = median.last_turn_ttft_ms.unstack()[agents[1:] or agents].reindex(
        names
    )  # a peer's first agent may prefill
    in_turns.loc[packed_strategies(runs)] = np.nan  # their agents have no turns
    panels = {
        "agents in turns: TTFT of the last one, ms": in_turns,
        "from the first call to the last answer, ms": median.end_to_end_ms.unstack()[agents].reindex(names),
    }
    with sheet(1.6 + 0.27 * len(names), f"{caption}; {runs.depth.iloc[0]:,} tokens".removeprefix("; ")) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for ax, (label, shown) in zip((left, right), panels.items(), strict=True):
            for y, (name, row) in enumerate(shown.iterrows()):
                colour = BASELINE if name == "naive" else OURS if name in STRATEGY else _PEER
                ax.plot(row, [y] * len(row), color=colour, linewidth=1, zorder=1)
                for n, marker in markers.items():
                    if n in row:
                        ax.scatter(row[n], y, color=colour, marker=marker, s=28, zorder=2)
                if row.isna().all():
                    middle = np.sqrt(shown.min().min() * shown.max().max())
                    ax.text(middle, y, "all agents at once", fontsize=8, color="#666666", va="center", ha="center")
            ax.set(xscale="log", ylim=(-0.9, len(names) - 0.4))
            ax.set_xlabel(f"{label} (measured)", fontsize=8.5)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plain_numbers(ax.xaxis)
            ax.tick_params(axis="x", labelsize=8)
            ax.grid(axis="y", color="#EEEEEE")
            ax.set_axisbelow(True)
        left.set_yticks(range(len(names)), names)
        alone = median.branch_ms[[name for name in ("shared", "pooled") if name in names]]
        left.axvspan(alone.min(), alone.max(), color="#DDDDDD", zorder=0)
        naive = median.loc["naive"]
        for n in agents[1:]:
            right.axvline(naive.end_to_end_ms[n] / bound(naive.loc[n], n), **DOTTED)
        key = {
            f"{n} agent{'' if n == 1 else 's'}": Line2D([], [], color="#222222", marker=m, linestyle="", markersize=5)
            for n, m in markers.items()
        }
        key["decoding a question (measured)"] = "#DDDDDD"
        key["bound (predicted)"] = Line2D([], [], color="#444444", linestyle=":")
        table = judged(runs, list(STRATEGY))
        headline(figure, f"{table.ours[AT_ONCE]}, {agents[-1]} agents: {_at_once(table)}", key)
    return figure


def _at_once(table: pd.DataFrame) -> str:
    """All agents at once: against the best peer, and if ours is ahead, against the best that takes all at once."""
    best = table.loc[AT_ONCE]
    slots = table.loc[SERVED_AT_ONCE] if SERVED_AT_ONCE in table.index else best
    ahead = slots.peer != best.peer and min(best.ratio, slots.ratio) > 1
    return f"{best.words}, {factor(slots.ratio)} as {slots.peer}" if ahead else best.words


def yardsticks(frame: pd.DataFrame, ratios: pd.DataFrame, caption: str = "") -> Figure:
    """Batched generation by number of agents: our tokens per second in % of llama-batched-bench's, a dot per repeat.

    frame: from measure.yardsticks; ratios: from analysis.summary.yardstick_ratios.
    """
    runs = frame[frame.work == "generation"].pivot_table("tokens_per_s", ["n_agents", "repeat"], "program")
    ours = (100 * runs["swarmkv_lab"] / runs["llama-batched-bench"]).reset_index(name="share")
    median = 100 * ratios.ratio["generation"]
    agents = list(median.index)
    with sheet(3.2, caption) as figure:
        ax = figure.subplots()
        ax.axhline(100, color=BASELINE, linewidth=1.2)
        ax.scatter(ours.n_agents.map(agents.index), ours.share, color=OURS, s=16, alpha=0.8)
        ax.plot(range(len(agents)), median, color=OURS, marker="_", markersize=22, markeredgewidth=2.5, linestyle="")
        ax.set(xlabel="agents in one batch", ylim=(0, 1.1 * ours.share.max()))
        ax.set_ylabel("% of the benchmark's tokens\nper second (measured)")
        ax.set_xticks(range(len(agents)), agents)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        share = f"{median.min():.0f}% to {median.max():.0f}%"
        key = {
            "llama-batched-bench": Line2D([], [], color=BASELINE),
            "swarmkv_lab, each repeat": Line2D([], [], color=OURS, marker="o", markersize=4, linestyle=""),
            "median": Line2D([], [], color=OURS, linewidth=2.5),
        }
        headline(figure, f"Batched generation from Python: {share} of llama.cpp's own benchmark", key)
    return figure
