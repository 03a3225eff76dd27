"""Figures of serving: what became of each request, tokens by layout, and the lab's server beside llama-server."""

import pandas as pd
from matplotlib.figure import Figure

from swarmkv_studies.common.speedup import as_words, quartiles
from swarmkv_studies.common.style import OURS, headline, plain_numbers, sheet
from swarmkv_studies.serving import bench

_PHASES = {"waited": ("waited", "#BBBBBB"), "prefill": ("prefill", "#0072B2"), "generate": ("answer", "#009E73")}
_PEERS = {bench.SLOTS: ("llama-server, 8 slots", "#555555"), bench.UNIFIED: ("llama-server, --kv-unified", "#AAAAAA")}


def requests_timeline(timeline: pd.DataFrame, stats: pd.DataFrame, caption: str = "") -> Figure:
    """A lane per request: how long it waited, was prefilled and answered; how many of its tokens were there already.

    timeline, stats: a server's.
    """
    start = timeline.start_ms.min()
    lanes = {request: lane for lane, request in enumerate(stats.sort_values("arrived_ms").request)}
    sent, computed = stats.prompt_tokens.sum(), stats.computed_tokens.sum()
    with sheet(1.3 + 0.24 * len(lanes), caption) as figure:
        ax = figure.subplots()
        for phase, (_, colour) in _PHASES.items():
            rows = timeline[timeline.phase == phase]
            width = (rows.end_ms - rows.start_ms) / 1e3
            ax.barh(rows.request.map(lanes), width, 0.66, (rows.start_ms - start) / 1e3, color=colour)
        ends = timeline.groupby("request").end_ms.max()
        for row in stats.itertuples():
            says = f"  {row.computed_tokens:,} computed, {row.shared_tokens:,} shared"
            ax.text((ends[row.request] - start) / 1e3, lanes[row.request], says, va="center", fontsize=8)
        ax.set(xlim=(0, 1.45 * (ends.max() - start) / 1e3), xlabel="seconds (measured)", ylabel="request", yticks=[])
        ax.invert_yaxis()
        message = f"{len(lanes)} requests: of {sent:,} tokens sent, {computed:,} were computed"
        headline(figure, message, dict(_PHASES.values()))
    return figure


def tokens_by_layout(rows: pd.DataFrame, caption: str = "") -> Figure:
    """Tokens that eight reviewers send, role first, and what the server computes of them. rows: as serving_rounds'."""
    rows = rows[(rows.work == bench.ROLES_FIRST) & (rows.server == bench.OURS)].groupby("layout").first()
    rows = rows.loc[[layout for layout in bench.LAYOUTS if layout in rows.index]]
    with sheet(1.2 + 0.45 * len(rows), caption) as figure:
        ax = figure.subplots()
        ax.barh(rows.index, rows.prompt_tokens, 0.7, color="#E5E5E5")
        ax.barh(rows.index, rows.computed_tokens, 0.4, color=OURS)
        for lane, row in enumerate(rows.itertuples()):
            says = f"  {row.computed_tokens:,} of {row.prompt_tokens:,}"
            ax.text(row.prompt_tokens, lane, says, va="center", fontsize=9)
        ax.set(xlim=(0, 1.25 * rows.prompt_tokens.max()), xlabel="tokens of prompts (counted)")
        plain_numbers(ax.xaxis)
        ax.invert_yaxis()
        last = rows.iloc[-1]
        share = last.computed_tokens / last.prompt_tokens
        message = f"Eight roles before one document: {last.name} computes {share:.0%} of the tokens"
        headline(figure, message, {"sent": "#E5E5E5", "computed": OURS})
    return figure


def times_by_round(rows: pd.DataFrame, work: str) -> pd.DataFrame:
    """Until the last answer, or short requests' p95 of TTFT, ms: a row per round, a column per server.

    rows: of serving_rounds; of the lab's server, composed where roles come first.
    """
    mine = rows[rows.work == work]
    if work == bench.ROLES_FIRST:
        mine = mine[(mine.server != bench.OURS) | (mine.layout == "composed")]
    time = "p95_ttft_ms" if work == bench.SHORT else "end_to_end_ms"
    return mine.pivot(index="repeat", columns="server", values=time)


def beside_llama_server(rows: pd.DataFrame, caption: str = "") -> Figure:
    """Bars: medians; dots: rounds; the words: of the ratios within a round (as_words). rows: of serving_rounds."""
    works = [work for work in (bench.ROLES_FIRST, bench.LEADING, bench.APART, bench.SHORT) if work in set(rows.work)]
    colours = {bench.OURS: ("lab.serve (composed where roles come first)", OURS)} | _PEERS
    says = []
    with sheet(3.2, caption) as figure:
        for ax, work in zip(figure.subplots(1, len(works), squeeze=False)[0], works, strict=True):
            table = times_by_round(rows, work)
            table = table[[name for name in colours if name in table]]
            says.append(as_words(quartiles(table[bench.SLOTS] / table[bench.OURS])))
            table /= 1e3
            ax.bar(range(len(table.columns)), table.median(), 0.7, color=[colours[name][1] for name in table])
            for lane, name in enumerate(table):
                ax.plot([lane] * len(table), table[name], "o", color="#222222", markersize=3.5, markeredgecolor="white")
            ax.set_title(f"{work}:\n{says[-1]}", fontsize=8)
            ax.set_xticks([])
            if work in (works[0], bench.SHORT):
                ax.set_ylabel("p95 of TTFT, s" if work == bench.SHORT else "until the last answer, s")
        message = f"Eight requests at once, beside eight slots: {says[0]} with roles first"
        headline(figure, message, {label: colour for label, colour in colours.values()})
    return figure
