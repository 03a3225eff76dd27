"""The figure of peers: the lab's strategies beside other programs, at three jobs."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swarmkv_studies.common.speedup import as_words
from swarmkv_studies.common.style import OURS, STRATEGY, headline, plain_numbers, sheet
from swarmkv_studies.peers.verdict import AT_ONCE, IN_TURNS, JOBS, PREFILL
from swarmkv_studies.peers.verdict import verdict as judged

_PEER = "#888888"
PLAIN = {
    "llama_prefix": "llama-cpp-python, one Llama again",
    "llama_ram_cache": "llama-cpp-python, LlamaRAMCache",
    "llama_state": "llama-cpp-python, saved state",
    "server_warm": "llama-server, one warm slot",
    "server_cold": "llama-server, a slot per agent",
    "transformers": "transformers, copied cache",
}
# Job: title, what is measured, the unit's ms and digits.
_SAYS = {
    IN_TURNS: ("one after another", "last agent's first token,\nms from its turn", 1, 0),
    AT_ONCE: ("all at once", "last answer's end,\ns from the call", 1e3, 1),
    PREFILL: ("the prefill alone", "the document's prefill,\ns", 1e3, 1),
}


def verdict(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Who is faster at three jobs: agents one after another, all at once, and the prefill alone; by program.

    Bars are medians, dots are runs. runs: of one comparison with peers at one depth (see peers.verdict).
    """
    table = judged(runs, list(STRATEGY))
    jobs = [job for job in _SAYS if job in table.index]
    most = runs[runs.n_agents == runs.n_agents.max()]
    ours = dict.fromkeys(name for name in table.ours if name in STRATEGY)
    by_end = most.groupby("strategy").end_to_end_ms.median().sort_values()
    names = [*ours, *(name for name in by_end.index if name not in STRATEGY)]
    about = f"{runs.depth.iloc[0]:,} tokens, {most.n_agents.iloc[0]} agents, {most.repeat.nunique()} rounds"
    small_print = f"{caption}\n{about}; ahead or behind: our best against the best peer, median of the rounds' ratios"
    with sheet(1.7 + 0.26 * len(names), small_print.strip()) as figure:
        for ax, job in zip(figure.subplots(1, len(jobs), sharey=True, squeeze=False)[0], jobs, strict=True):
            title, label, unit, digits = _SAYS[job]
            time, does = JOBS[job]
            for y, name in enumerate(names):
                rows = most[most.strategy == name]
                if not does(rows):
                    ax.text(0, y, " -", va="center", fontsize=8, color=_PEER)
                    continue
                ms = rows[time] / unit
                ax.barh(y, ms.median(), 0.66, color=OURS if name in STRATEGY else _PEER)
                ax.plot(ms, [y] * len(ms), "o", color="#222222", markersize=3, markeredgecolor="white")
                ax.text(ms.max(), y, f"  {ms.median():,.{digits}f}", va="center", fontsize=8.5)
            ax.set_xlim(0, 1.35 * ax.get_xlim()[1])
            ax.set_xlabel(f"{label} (measured)", fontsize=8.5)
            ax.set_title(f"{title}:\n{as_words(table.loc[job])}", fontsize=9)
            ax.tick_params(axis="y", length=0, labelsize=8.5)
            ax.xaxis.set_major_locator(MaxNLocator(3))
            plain_numbers(ax.xaxis)
        ax.set_yticks(
            range(len(names)), [f"the lab, {name}" if name in STRATEGY else PLAIN.get(name, name) for name in names]
        )
        ax.set_ylim(len(names) - 0.5, -0.5)
        parts = [f"{job} {as_words(table.loc[job])}" for job in (IN_TURNS, AT_ONCE) if job in jobs]
        headline(figure, f"The lab against the best: {', '.join(parts)}")
    return figure
