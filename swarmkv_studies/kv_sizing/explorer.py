"""The sizing explorer: how large a model's KV cache is, and how many agents fit in memory."""

from typing import Any

import ipywidgets
from matplotlib.figure import Figure

import swarmkv_studies as studies
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KV_TYPES
from swarmkv_studies.common.widgets import LOOK, Explorer, html_table, size
from swarmkv_studies.kv_sizing.memory import (
    LAYOUTS,
    MOST_AGENTS,
    Q4_K_M_BITS,
    TAIL,
    agents_bytes,
    agents_that_fit,
    memory_by_agents,
    weights_bytes,
)

_TOKENS = (256, 512, 1024, 2048, 3501, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_BUDGETS_GB = (2, 4, 6, 8, 12, 16, 24, 32, 48, 80, 141, 192)
_DRAWN = 64  # agents: the axis and the slider end there, however many fit


class SizingExplorer(Explorer):
    """Choose a model, a document, KV types, agents and memory: shows KV bytes, copied and shared, and what fits.

    The weights (4.85 bits each) take their part of the memory first. ``numbers``: the numbers shown, predicted by
    KVGeometry and memory.
    """

    def __init__(self, model: str = "qwen2.5-7b", tokens: int = 3501, agents: int = 8, budget_gb: int = 8) -> None:
        self.model = ipywidgets.Dropdown(options=list(catalogue().index), value=model, description="Model", **LOOK)
        self.tokens = ipywidgets.SelectionSlider(
            options=[(f"{n:,}", n) for n in _TOKENS], value=tokens, description="Document, tokens", **LOOK
        )
        self.agents = ipywidgets.IntSlider(value=agents, min=1, max=_DRAWN, description="Agents", **LOOK)
        self.key_type = ipywidgets.Dropdown(options=KV_TYPES, value="f16", description="Key type", **LOOK)
        self.value_type = ipywidgets.Dropdown(options=KV_TYPES, value="f16", description="Value type", **LOOK)
        self.budget = ipywidgets.SelectionSlider(
            options=[(f"{gb} GB", gb) for gb in _BUDGETS_GB], value=budget_gb, description="Memory", **LOOK
        )
        super().__init__([self.model, self.tokens, self.agents, self.key_type, self.value_type, self.budget])

    @property
    def numbers(self) -> dict[str, Any]:
        """Bytes of the weights, per token, of a snapshot and of all agents, and the agents that fit; predicted."""
        shape, how, weights = geometry(self.model.value), self._how, weights_bytes(self.model.value)
        left = self.budget.value * 10**9 - weights
        numbers = {
            "weights_bytes": weights,
            "bytes_per_token": shape.bytes_per_token(how["kv_type"]),
            "snapshot_bytes": shape.snapshot_bytes(how["n_tokens"], how["kv_type"]),
        }
        for layout in LAYOUTS:
            numbers[f"{layout}_bytes"] = agents_bytes(shape, n_agents=self.agents.value, layout=layout, **how)
            numbers[f"{layout}_fit"] = agents_that_fit(shape, budget=left, layout=layout, **how)
        return numbers

    def figure(self) -> Figure:
        """Weights and KV memory against agents, for the current values of the controls."""
        numbers = self.numbers
        fit = {layout: numbers[f"{layout}_fit"] for layout in LAYOUTS}
        frame = memory_by_agents(geometry(self.model.value), most=_DRAWN, **self._how)
        title = f"{self.model.value}, {self.tokens.value:,} tokens"
        about = (self.budget.value * 10**9, self.agents.value, fit, title, self.settings, numbers["weights_bytes"])
        return studies.memory_against_agents(frame, *about)

    def words(self) -> str:
        """The numbers as a table."""
        numbers = self.numbers
        rows = [
            (f"weights, {Q4_K_M_BITS} bits each", size(numbers["weights_bytes"])),
            ("per token", size(numbers["bytes_per_token"])),
            ("snapshot of the document", size(numbers["snapshot_bytes"])),
        ]
        for agents, layout in (("with copies", "copied"), ("sharing the document", "shared")):
            held, fit = numbers[f"{layout}_bytes"], numbers[f"{layout}_fit"]
            more = " or more" if fit == MOST_AGENTS else ""
            rows.append((f"all agents, {agents}", f"{size(held)}; {fit}{more} fit beside the weights"))
        return html_table(rows, f"KV cache, predicted (each agent adds {TAIL} tokens of its own; 1 GB is 10^9 bytes)")

    @property
    def _how(self) -> dict[str, Any]:
        kv_type = (self.key_type.value, self.value_type.value)
        return {"n_tokens": self.tokens.value, "kv_type": kv_type}


sizing_explorer = SizingExplorer
