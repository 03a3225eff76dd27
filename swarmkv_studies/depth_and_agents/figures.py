"""Figures of grids: latency, speed-up and packing by depth and number of agents, and where copies stop paying."""

from collections.abc import Mapping
from itertools import cycle, product

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator

from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.speedup import ROUND, speedups
from swarmkv_studies.common.style import DOTTED, STRATEGY, headline, plain_numbers, sheet, strategy_key, ticks_at

PAYS = 1.1  # a gain begins at 10 percent: repeats of the same work differ by less
_SHOWN = ("naive", "shared", "batched")  # swarmkv and pooled lie upon shared
_UNMEASURED = {"facecolor": "#EEEEEE", "edgecolor": "#BBBBBB"}
_SHARES = {"batched": ("--", "v"), "shared": ("-", "^")}


def latency(runs: pd.DataFrame, caption: str = "") -> Figure:
    """Seconds from the call until all have answered: against the document's depth, and against the number of agents.

    Points are measured (bars: smallest and largest of the rounds), curves predicted. Depths are compared with the most
    agents, agents at the deepest document for which most numbers of them were measured. runs: of a sweep with naive.
    Raises SwarmKVError where a cost model cannot be fitted.
    """
    shown = runs[runs.strategy.isin(_SHOWN)]
    n, depth = int(shown.n_agents.max()), _with_most_agents(shown)
    model, names = CostModel.fit(runs), [name for name in _SHOWN if name in set(runs.strategy)]
    gains = speedups(runs)["median"]
    with sheet(3.9, caption) as figure:
        left, right = figure.subplots(1, 2)
        for ax, axis in ((left, "depth"), (right, "n_agents")):
            at = shown[shown.n_agents == n] if ax is left else shown[shown.depth == depth]
            values = sorted(at[axis].unique())
            along = np.geomspace(values[0], values[-1], 40)
            curves = model.predict(*((along, [n]) if ax is left else ([depth], along)), names)
            for name in names:
                colour, marker = STRATEGY[name]
                ax.plot(along, curves[curves.strategy == name].end_to_end_ms / 1e3, color=colour, linewidth=1.3)
                seconds = at[at.strategy == name].groupby(axis).end_to_end_ms.agg(["min", "median", "max"]) / 1e3
                ax.vlines(seconds.index, seconds["min"], seconds["max"], color=colour, linewidth=1)
                ax.plot(seconds.index, seconds["median"], marker, color=colour, markeredgecolor="white")
            ticks_at(ax.xaxis, values)
            ax.grid()
            ax.set_axisbelow(True)
        left.set(xscale="log", yscale="log", xlabel="document, tokens", ylabel="s until all have answered")
        left.set_title(f"{n} agents")
        ticks_at(left.xaxis, sorted(shown[shown.n_agents == n].depth.unique()))
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_numbers(left.yaxis)
        right.set(xlabel="agents", ylim=(0, None))
        right.set_title(f"{depth:,} tokens")
        key = strategy_key(names) | {
            "measured": Line2D([], [], color="#666666", marker="o", linestyle=""),
            "predicted": Line2D([], [], color="#666666", linewidth=1.2),
        }
        depths = shown[shown.n_agents == n].depth
        few, many = (f"{gains[at, n, 'shared']:.1f}x at {at:,} tokens" for at in (depths.min(), depths.max()))
        headline(figure, f"{n} agents end earlier with shared: {few}, {many}", key)
    return figure


def speedup_map(runs: pd.DataFrame, strategy: str = "shared", caption: str = "") -> Figure:
    """End-to-end speed-up over naive by depth and agents; a point that was not measured is hatched, with a prediction.

    The headline is the highest measured one. runs: of a sweep with naive and the strategy.
    """
    gains = speedups(runs).xs(strategy, level="strategy")
    measured = gains["median"].unstack("depth").sort_index().sort_index(axis=1)
    depths, agents = list(measured.columns), list(measured.index)
    predicted = pd.DataFrame(CostModel.fit(runs).speedup(depths, agents, strategy).T, agents, depths)
    top = measured.stack().idxmax()
    with sheet(3.6, caption) as figure:
        ax = figure.subplots()
        mesh = ax.pcolormesh(measured, cmap="cividis", vmin=1, edgecolor="white", linewidth=1.5)
        for (y, n), (x, depth) in product(enumerate(agents), enumerate(depths)):
            known = pd.notna(measured.loc[n, depth])
            if not known:
                ax.add_patch(Rectangle((x, y), 1, 1, hatch="///", linewidth=0, **_UNMEASURED))
            text = f"{measured.loc[n, depth]:.1f}x" if known else f"({predicted.loc[n, depth]:.1f}x)"
            bright = not known or measured.loc[n, depth] > (1 + measured.max().max()) / 2
            look = {"fontsize": 11, "weight": "bold"} if known else {"fontsize": 9}
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", color="black" if bright else "white", **look)
        ax.set(xlabel="document, tokens", ylabel="agents")
        ax.set_xticks(np.arange(len(depths)) + 0.5, [f"{depth:,}" for depth in depths])
        ax.set_yticks(np.arange(len(agents)) + 0.5, agents)
        ax.tick_params(length=0)
        figure.colorbar(mesh, ax=ax, label="times as early as naive (measured)")
        rounds = gains.rounds[top[1], top[0]]
        message = f"{strategy}: {top[0]} agents over {top[1]:,} tokens end {measured.loc[top]:.1f}x as early"
        key = {"not measured (in brackets: predicted)": Patch(hatch="///", **_UNMEASURED)}
        headline(figure, f"{message} ({rounds} round{'s' if rounds > 1 else ''})", key)
    return figure


def worth(runs: pd.DataFrame, answered: int, caption: str = "") -> Figure:
    """How many times as early as naive all end, against the length of an answer, for each number of agents. Predicted.

    At the deepest document for which most numbers of agents were measured.

    Points are measured, with answers of ``answered`` tokens; an answer's time is taken to grow with its tokens. Below
    the dotted line the gain is under a tenth. runs: of a sweep with naive, shared and batched.
    """
    model, gains, depth = CostModel.fit(runs), speedups(runs)["median"], _with_most_agents(runs)
    lengths = np.geomspace(1, 2000, 60)
    numbers = sorted(n for n in runs[runs.depth == depth].n_agents.unique() if n > 1)
    shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.8, len(numbers)))
    with sheet(4.0, caption) as figure:
        ax = figure.subplots()
        for n, colour in zip(reversed(numbers), shades, strict=True):
            naive, *ours = (_ends(model, name, depth, n, lengths / answered) for name in ("naive", *_SHARES))
            for (name, (line, marker)), ends in zip(_SHARES.items(), ours, strict=True):
                ax.plot(lengths, naive / ends, line, color=colour, linewidth=1.6)
                ax.plot(answered, gains[depth, n, name], marker, color=colour, markeredgecolor="white", markersize=7)
            ax.text(0.92, (naive / ours[0])[0], f"{n} agents", color=colour, ha="right", va="center", fontsize=9)
        ax.axhline(PAYS, **DOTTED)
        ax.text(1, PAYS, "under 1.1x", va="bottom", fontsize=8.5, color="#444444")
        ax.set(xscale="log", xlim=(0.35, 2000), ylim=(0.8, None))
        ax.set_xlabel(f"tokens of each answer, over a document of {depth:,} tokens")
        ax.set_ylabel("times as early as naive\n(predicted; marks: measured)")
        ticks_at(ax.xaxis, [1, 4, 16, 64, 256, 1000])
        ax.grid()
        ends = [_ends(model, name, depth, 2, lengths / answered) for name in ("naive", "shared")]
        stops = float(np.exp(np.interp(-PAYS, -ends[0] / ends[1], np.log(lengths))))
        grey = {"color": "#666666"}
        key = {name: Line2D([], [], linestyle=line, marker=m, **grey) for name, (line, m) in _SHARES.items()}
        message = f"shared, 2 agents: under 1.1x from answers of {float(f'{stops:.1g}'):,.0f} tokens on (predicted)"
        headline(figure, message, key)
    return figure


def _with_most_agents(runs: pd.DataFrame) -> int:
    """The deepest of the depths with the most numbers of agents."""
    numbers = runs.groupby("depth").n_agents.nunique()
    return int(numbers[numbers == numbers.max()].index.max())


def _ends(model: CostModel, strategy: str, depth: int, n_agents: int, longer: np.ndarray) -> np.ndarray:
    """End to end, ms, if answers are ``longer`` times as long as those that were measured."""
    row = model.predict([depth], [n_agents], [strategy]).iloc[0]
    turns = 1 if strategy in model.packed else n_agents
    return np.asarray(row.end_to_end_ms + (longer - 1) * turns * row.generate_ms)


def packing(runs: pd.DataFrame, caption: str = "") -> Figure:
    """An agent's own work one after another (shared), divided by packed (batched), against agents, by depth."""
    work = runs[runs.strategy.isin(["shared", "batched"])].set_index([*ROUND, "strategy"])
    after = (work.branch_ms + work.sample_ms + work.generate_ms).unstack("strategy")
    n_agents = after.index.get_level_values("n_agents")
    ratio = after["shared"] / (after["batched"] / n_agents)  # the packed ones share every step
    saved = ratio.groupby(["depth", "n_agents"]).median().unstack("n_agents")
    _, *several = saved.columns
    few, many = (_span(saved[n].round(1)) for n in (several[0], several[-1]))
    with sheet(3.9, caption) as figure:
        ax = figure.subplots()
        shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(saved)))
        for colour, depth, marker in zip(shades, saved.index, cycle("osD^vP"), strict=False):
            row = saved.loc[depth].dropna()
            ax.plot(row.index, row, color=colour, marker=marker, linewidth=1.3, label=f"{depth:,} tokens")
        ax.axhline(1, color="#444444", linewidth=0.8)
        ax.set(
            xscale="log", xlabel="agents", ylim=(0, None), ylabel="own work of an agent,\nshared / batched (measured)"
        )
        ticks_at(ax.xaxis, saved.columns)
        ax.grid()
        ax.legend()
        headline(figure, f"Packed, own work is {few}x as fast with {several[0]} agents, {many}x with {several[-1]}")
    return figure


def break_even(grids: Mapping[str, pd.DataFrame], depth: int = 3501, n_agents: int = 2, caption: str = "") -> Figure:
    """The speed-up over naive if a prefill were as fast as the x axis says, with the copies of each machine. Predicted.

    grids: a sweep's runs by machine; a dot marks the machine's own prefill. Below 1 a strategy does not pay.
    """
    speeds = np.geomspace(100, 300_000, 120)  # tokens per second
    ends = []
    with sheet(4.0, caption) as figure:
        ax = figure.subplots()
        key = strategy_key(["swarmkv", "shared"])
        for (machine, runs), line in zip(grids.items(), ("-", "--", ":"), strict=False):
            model = CostModel.fit(runs)
            own = 1e3 * depth / float(model.predict([depth], [1], ["naive"]).prefill_ms[0])
            for name in ("swarmkv", "shared"):
                here, *gains = (model.speedup([depth], [n_agents], name, speed)[0, 0] for speed in (own, *speeds))
                ax.plot(speeds, gains, line, color=STRATEGY[name][0], linewidth=1.6)
                ax.plot(own, here, STRATEGY[name][1], color=STRATEGY[name][0], markersize=7, markeredgecolor="white")
                if name == "swarmkv":
                    ends.append(np.exp(np.interp(-1, -np.array(gains), np.log(speeds))))  # the gain falls
            key[machine] = Line2D([], [], color="#666666", linestyle=line)
        ax.axhline(1, **DOTTED)
        ax.set(xscale="log", ylim=(0.8, n_agents))
        ax.set_xlabel(f"prefill of {depth:,} tokens, in tokens per second (marks: each machine's own)")
        ax.set_ylabel("times as early as naive (predicted)")
        ticks_at(ax.xaxis, [10**n for n in range(2, 6)])
        ax.grid()
        at = " and ".join(f"{float(f'{end:.2g}'):,.0f}" for end in ends)
        headline(figure, f"{n_agents} agents: swarmkv pays below a prefill of {at} tokens/s (predicted)", key)
    return figure


def _span(values: pd.Series) -> str:
    """The smallest and the largest value, or one of them where they are the same."""
    return " to ".join(f"{value:,g}" for value in dict.fromkeys([values.min(), values.max()]))
