"""The latency explorer: measured points and the cost model's curves, for any depth and number of agents."""

from html import escape

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import swarmkv_studies as studies
from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import MINE_NAME, REFERENCE_NAME, measurements
from swarmkv_studies.common.widgets.explorer import LOOK, Explorer, StrategyBoxes, html_table, row
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED, PUBLISHED_RUNS

_DEPTHS = (128, 256, 512, 768, 1024, 1536, 2048, 2500, 3000, 3501, 4000, 5000, 6000, 7000, 8000)
_PUBLISHED = "published"
_ARTICLE = set(PUBLISHED_RUNS.strategy)  # all it has: these strategies' times at one depth, for so many agents


class LatencyExplorer(Explorer):
    """Choose the source of the numbers, the metric, the x axis, depth and agents. Needs no model.

    Sources: "reference" (the maintainers' machine), "mine" (what `make reproduce` measured here) and "published" (the
    article's end-to-end times).
    """

    name = "latency"

    def __init__(self, source: str = REFERENCE_NAME, depth: int = 3501, agents: int = 4) -> None:
        self._not_offered = ""
        sources = [REFERENCE_NAME, MINE_NAME, _PUBLISHED]
        try:
            _ = measurements(MINE_NAME).grid
        except SwarmKVError as error:
            if source == MINE_NAME:
                raise
            sources.remove(MINE_NAME)
            self._not_offered = f"<p>Source {MINE_NAME!r} is not offered yet: {escape(str(error))}.</p>"
        self.source = ipywidgets.Dropdown(options=sources, value=source, description="Source", **LOOK)
        titles = {title: metric for metric, title in studies.METRICS.items()}
        self.metric = ipywidgets.Dropdown(options=titles, value="last_ttft_ms", description="Show", **LOOK)
        against = {"depth": "depth", "agents": "n_agents"}
        self.against = ipywidgets.Dropdown(options=against, value="depth", description="Against", **LOOK)
        options = [(f"{n:,}", n) for n in _DEPTHS]
        self.depth = ipywidgets.SelectionSlider(options=options, value=depth, description="Document, tokens", **LOOK)
        self.agents = ipywidgets.IntSlider(value=agents, min=1, max=32, description="Agents", **LOOK)
        self.log_axes = ipywidgets.Checkbox(value=True, description="logarithmic axes", indent=False)
        self.shown = StrategyBoxes()
        self._loaded: tuple[str, pd.DataFrame, CostModel] | None = None
        self._only_article()
        self.source.observe(lambda _: self._only_article(), names="value")  # before the one that redraws
        choices = (self.source, self.metric, self.against, self.depth, self.agents)
        boxes = (*self.shown.values(), self.log_axes)
        super().__init__([*choices, *boxes], [*choices, row(*boxes)])

    def data(self) -> pd.DataFrame:
        """The runs along the chosen axis; column ``kind`` says whether they are measured, published or predicted."""
        points, curves = self._shown()
        return pd.concat([points.assign(kind=self._kind), curves.assign(kind="predicted")], ignore_index=True)

    def figure(self) -> Figure:
        """Latency along the chosen axis; the dotted line marks the depth or the agents chosen on that axis."""
        points, curves = self._shown()
        metric, x = self.metric.value, self.against.value
        at = f"{self.agents.value} agents" if x == "depth" else f"{self.depth.value:,} tokens"
        if self._kind == _PUBLISHED:
            at = "2 agents, 3,501 tokens"
        return studies.latency(
            points,
            curves,
            kind=self._kind,
            x=x,
            metrics=[metric],
            log=self.log_axes.value,
            mark=self.depth.value if x == "depth" else self.agents.value,
            title=f"{studies.METRICS[metric].capitalize()}, {at} ({self.source.value})",
        )

    def words(self) -> str:
        """The cost model's predictions for the chosen depth and number of agents."""
        if self._kind == _PUBLISHED:
            both = "{:,} ms against {:,} ms"
            whole, activation = both.format(*PUBLISHED["end_to_end"]), both.format(*PUBLISHED["activation"])
            return (
                f"<p>The article, on a GTX 1080 with Qwen2.5-7B, two agents and 3,501 tokens: end to end {whole}. "
                f"Activation {activation}; the first is the prefill alone, the second includes the branch. "
                f"It published nothing else, so the other controls are off.</p>{self._not_offered}"
            )
        _, model = self._measured()
        here = [self.depth.value], [self.agents.value]
        naive = model.predict(*here, ["naive"]).iloc[0]
        rows = []
        for run in model.predict(*here, self.shown.ticked).itertuples():
            times = [_ms(getattr(run, metric)) for metric in studies.METRICS]
            sooner = f"{naive.last_ttft_ms / run.last_ttft_ms:.2f}x, {naive.end_to_end_ms / run.end_to_end_ms:.2f}x"
            rows.append((run.strategy, *times, sooner))
        times = ["last agent's first token, ms", "all agents, ms", "activation, ms"]
        head = ["strategy", *times, "as early as naive: last first token, all agents"]
        title = f"{self.depth.value:,} tokens, {self.agents.value} agents, predicted"
        where = (
            f"<p>{escape(self.source.value.capitalize())}: {escape(measurements(self.source.value).grid_caption)}</p>"
        )
        return html_table(rows, title, head) + where + self._not_offered

    def _only_article(self) -> None:
        """Of what the article published there is one metric, at one point: the other controls have nothing to say."""
        only = self._kind == _PUBLISHED
        if only:
            self.metric.value = "end_to_end_ms"
        for control in (self.metric, self.against, self.depth, self.agents):
            control.disabled = only
        for name, box in self.shown.items():
            box.disabled = only and name not in _ARTICLE

    @property
    def _kind(self) -> str:
        return _PUBLISHED if self.source.value == _PUBLISHED else "measured"

    def _measured(self) -> tuple[pd.DataFrame, CostModel]:
        """The source's grid and its cost model, read again when the source changes."""
        if self._loaded is None or self._loaded[0] != self.source.value:
            grid = measurements(self.source.value).grid
            self._loaded = self.source.value, grid, CostModel.fit(grid)
        return self._loaded[1:]

    def _shown(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(points, curves) along the chosen axis."""
        names = self.shown.ticked
        if self._kind == _PUBLISHED:
            points = PUBLISHED_RUNS[PUBLISHED_RUNS.strategy.isin(names)]
            if points.empty:
                raise SwarmKVError("the article only has times of naive and swarmkv: tick one of them")
            return points, PUBLISHED_RUNS[:0]
        grid, model = self._measured()
        if self.against.value == "depth":
            points = grid[grid.n_agents == self.agents.value]
            depths, agents = np.unique(np.geomspace(_DEPTHS[0], _DEPTHS[-1], 30).astype(int)), [self.agents.value]
        else:
            points = grid[grid.depth == self.depth.value]
            depths, agents = [self.depth.value], range(1, self.agents.max + 1)
        return points[points.strategy.isin(names)], model.predict(depths, agents, names)


def _ms(ms: float) -> str:
    return f"{ms:,.1f}" if ms < 100 else f"{ms:,.0f}"


latency_explorer = LatencyExplorer
