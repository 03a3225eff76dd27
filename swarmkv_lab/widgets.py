"""Widgets: explorers over figures and sizes, for a notebook. They only show; every number is the package's own."""

import io
from html import escape
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from swarmkv_lab import figures
from swarmkv_lab.catalogue import catalogue, geometry
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.memory import LAYOUTS, MOST_AGENTS, agents_bytes, agents_that_fit, memory_by_agents
from swarmkv_lab.sizing import KV_TYPES

_TOKENS = (256, 512, 1024, 2048, 3501, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_BUDGETS_GB = (2, 4, 6, 8, 12, 16, 24, 32, 48, 80, 141, 192)
_TAIL = 256
_WIDE = ipywidgets.Layout(width="min(100%, 46em)")
_LABEL = {"description_width": "9em"}


class SizingExplorer(ipywidgets.VBox):
    """Choose a model, a document, KV types, agents and a memory: see what it takes, copied and shared, and what fits.

    ``numbers``: what is shown, from KVGeometry and memory, predicted. ``figure()``: the picture, to keep.
    """

    def __init__(self, model: str = "qwen2.5-7b", tokens: int = 3501, agents: int = 8, budget_gb: int = 8) -> None:
        look = {"style": _LABEL, "layout": _WIDE}
        self.model = ipywidgets.Dropdown(options=list(catalogue().index), value=model, description="Model", **look)
        self.tokens = ipywidgets.SelectionSlider(
            options=[(f"{n:,}", n) for n in _TOKENS], value=tokens, description="Document, tokens", **look
        )
        self.agents = ipywidgets.IntSlider(value=agents, min=1, max=64, description="Agents", **look)
        self.key_type = ipywidgets.Dropdown(options=KV_TYPES, value="f16", description="Keys as", **look)
        self.value_type = ipywidgets.Dropdown(options=KV_TYPES, value="f16", description="Values as", **look)
        self.budget = ipywidgets.SelectionSlider(
            options=[(f"{gb} GB", gb) for gb in _BUDGETS_GB], value=budget_gb, description="Memory for KV", **look
        )
        self.controls = (self.model, self.tokens, self.agents, self.key_type, self.value_type, self.budget)
        self.table = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="760px"))
        super().__init__([*self.controls, self.table, self.picture])
        for control in self.controls:
            control.observe(self._redraw, names="value")
        self._redraw()

    @property
    def numbers(self) -> dict[str, Any]:
        """Bytes of a token, of a snapshot and of all agents, and the agents that fit; predicted."""
        shape, how = geometry(self.model.value), self._how
        held = {
            f"{layout}_bytes": agents_bytes(shape, n_agents=self.agents.value, layout=layout, **how)
            for layout in LAYOUTS
        }
        fit = {
            f"{layout}_fit": agents_that_fit(shape, budget=self.budget.value * 10**9, layout=layout, **how)
            for layout in LAYOUTS
        }
        return {
            "bytes_per_token": shape.bytes_per_token(how["kv_type"]),
            "snapshot_bytes": shape.snapshot_bytes(how["n_tokens"], how["kv_type"]),
            **held,
            **fit,
        }

    def figure(self) -> Figure:
        """Memory against agents, as the controls stand."""
        frame = memory_by_agents(geometry(self.model.value), most=64, **self._how)
        title = f"{self.model.value}, {self.tokens.value:,} tokens"
        return figures.memory_against_agents(frame, self.budget.value * 10**9, self.agents.value, title)

    @property
    def _how(self) -> dict[str, Any]:
        kv_type = (self.key_type.value, self.value_type.value)
        return {"n_tokens": self.tokens.value, "tail": _TAIL, "kv_type": kv_type}

    def _redraw(self, _change: Any = None) -> None:
        try:
            self.table.value = _table(self.numbers)
            png = io.BytesIO()
            self.figure().savefig(png, format="png", dpi=95, pil_kwargs={"compress_level": 1})
            self.picture.value = png.getvalue()
        except SwarmKVError as error:
            self.table.value = f"<p role='alert'>{escape(str(error))}</p>"


def sizing_explorer(**start: Any) -> SizingExplorer:
    """The sizing explorer; start: model, tokens, agents, budget_gb."""
    return SizingExplorer(**start)


def _count(n: int) -> str:
    return f"{n} or more" if n == MOST_AGENTS else str(n)


def _table(numbers: dict[str, Any]) -> str:
    rows = [
        ("a token", f"{numbers['bytes_per_token']:,} bytes"),
        ("a snapshot of the document", f"{numbers['snapshot_bytes']:,} bytes"),
        ("all agents, each with a copy", f"{numbers['copied_bytes']:,} bytes; {_count(numbers['copied_fit'])} fit"),
        ("all agents, sharing the document", f"{numbers['shared_bytes']:,} bytes; {_count(numbers['shared_fit'])} fit"),
    ]
    cells = "".join(f"<tr><th style='text-align:left;padding-right:2em'>{a}</th><td>{b}</td></tr>" for a, b in rows)
    return f"<table><caption>KV cache, predicted ({_TAIL} tokens of its own for each agent)</caption>{cells}</table>"
