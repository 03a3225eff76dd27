"""Gallery: every figure of the lab, drawn from one folder of measurements, and a page that shows them all."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from swarmkv_lab import figures
from swarmkv_lab.analysis.costmodel import held_out
from swarmkv_lab.analysis.measurements import Measurements, measurements
from swarmkv_lab.analysis.summary import yardstick_ratios
from swarmkv_lab.sizing.memory import agents_by_budget, catalogue_bytes

_FLEET = ["qwen2.5-7b", "llama-3.1-8b", "gemma-3-12b", "gpt-oss-20b"]
_SHAPES = "predicted from the models' shapes (data/catalogue.csv), KV in f16"


@dataclass(frozen=True)
class Exhibit:
    """A figure of the gallery. caption: what to read off it. alt: what it looks like, for those who do not see it."""

    name: str
    caption: str
    alt: str
    draw: Callable[[Measurements], Figure]


EXHIBITS = (
    Exhibit(
        "broadcast",
        "The idea: one prefill is broadcast to all agents, as a tower broadcasts the news to all phones.",
        "Drawing. Left: each agent reads the document for itself. Right: the document is read once and every agent is "
        "given the result.",
        lambda m: figures.broadcast(),
    ),
    Exhibit(
        "timeline",
        "Who did what when. Naive prefills the document for every agent; swarmkv once, and what is left of an agent's "
        "own work needs a close-up in milliseconds.",
        "Two Gantt charts on one time axis, a lane per agent: above, one long prefill bar in each agent's lane, one "
        "after another; below, one prefill bar for all. Under them a close-up of the agents' short phases.",
        lambda m: figures.timeline({name: m.timelines[name] for name in ("naive", "swarmkv")}, m.caption),
    ),
    Exhibit(
        "strategies",
        "Every strategy in one run: an agent's time to first token (logarithmic) and the whole, end to end.",
        "Two panels by strategy. Left, dots on a logarithmic axis: naive far to the right, all others close together "
        "on the left. Right, bars: naive twice as long as the others, which end near the dotted bound.",
        lambda m: figures.strategies(m.bench["summary"], m.caption),
    ),
    Exhibit(
        "article",
        "The article's two numbers beside ours, each pair as a share of its own baseline: other hardware, another "
        "model, the same effect.",
        "Two panels of paired bars, published and measured. End to end, the second bar of each pair is about half of "
        "the first; for the activation it is a few percent.",
        lambda m: figures.article(m.bench, m.caption),
    ),
    Exhibit(
        "activation",
        "Where an agent's wait goes. A private copy and a new context cost mostly the touching of fresh memory; a warm "
        "context only the copying; shared cells nothing that can be seen.",
        "Stacked horizontal bars by strategy: swarmkv has new context, copy and restore; pooled a short restore; "
        "shared and batched no visible bar.",
        lambda m: figures.activation(m.bench_runs, m.caption),
    ),
    Exhibit(
        "latency_against_depth",
        "Latency against the document's depth: points are measured, curves are the cost model's.",
        "Two log-log panels. Time to first token: naive rises steeply and runs far above the others. End to end: naive "
        "runs above the others at a constant distance.",
        lambda m: figures.latency_against_depth(m.grid, caption=m.grid_caption),
    ),
    Exhibit(
        "latency_against_agents",
        "Latency against the number of agents: naive pays the prefill again for each, the others only the agent's own "
        "work. Packed agents (batched) wait for each other: their first tokens come later, the last one sooner.",
        "Two log-log panels. Time to first token: naive flat and high; batched rises with the agents, the rest flat "
        "and low. End to end: naive rises in proportion to the agents, the others hardly.",
        lambda m: figures.latency_against_agents(m.grid, m.grid_depth, m.grid_caption),
    ),
    Exhibit(
        "speedup_against_agents",
        "The speed-up nears its bound: branches that run one after another cannot gain more than N(P+B)/(P+NB); "
        "packing makes B smaller and may pass it.",
        "Rising curves by strategy close under a dashed bound; batched runs above it.",
        lambda m: figures.speedup_against_agents(m.grid, m.grid_depth, m.grid_caption),
    ),
    Exhibit(
        "speedup_map",
        "Speed-up of shared over naive, end to end, for any document and any number of agents: colour and contours are "
        "predicted, boxed numbers measured.",
        "Heat map of depth against agents with contour lines: dark at one agent, brightest at the top right.",
        lambda m: figures.speedup_map(m.grid, caption=m.grid_caption),
    ),
    Exhibit(
        "predicted_against_measured",
        "How far the cost model can be trusted: each point was predicted by a model fitted without it.",
        "Two log-log scatter plots of predicted against measured latency; most points lie in or near a grey band of "
        "10 percent around the diagonal.",
        lambda m: figures.predicted_against_measured(held_out(m.grid), m.grid_caption),
    ),
    Exhibit(
        "packing",
        "What packing all agents into one decode saves of an agent's own work, shared over batched: next to nothing "
        "for one or two agents, more with each further one, at any depth.",
        "Curves of saved work against agents, one per depth: near one for one and two agents, then rising.",
        lambda m: figures.packing(m.grid, m.grid_caption),
    ),
    Exhibit(
        "peers",
        "Beside what people use today: who keeps the last prompt in its slot is as quick for the next agent; who is "
        "asked by all at once, or has to fetch a saved state, is not. Grey and dotted: the limits.",
        "Two log panels of dots by strategy and peer, a marker per number of agents. Left, the last agent's wait: "
        "naive far to the right, most others in or near a grey band. Right, end to end: naive and the servers asked "
        "by all at once far to the right.",
        lambda m: _peers(measurements()),
    ),
    Exhibit(
        "yardsticks",
        "Batched generation from Python beside llama.cpp's own benchmark in C++, on the same model, depth and threads.",
        "Dots by agents in a batch, each a share of the benchmark's tokens per second, most of them close to a line at "
        "100 percent.",
        lambda m: _yardsticks(measurements()),
    ),
    Exhibit(
        "pipeline",
        "A graph of agents over one document: two begin at their watermarks, in the middle of the prefill, two when it "
        "ends, and a reviewer reads their answers.",
        "Two Gantt charts on one time axis, a lane per agent: above, each agent's long prefill bar, one after another; "
        "below, one prefill bar with two dotted marks, where two agents answer, and the others' short bars at its end.",
        lambda m: _pipeline(measurements()),
    ),
    Exhibit(
        "first_answers",
        "When each agent's answer begins: on its watermark, when the whole document is read, or after a prefill of its "
        "own.",
        "Dots by agent on an axis of seconds: filled ones, with watermarks, far to the left for the first two agents; "
        "hollow ones, waiting, all near the prefill's end; naive's each further to the right.",
        lambda m: figures.first_answers(measurements().pipeline, measurements().pipeline_caption),
    ),
    Exhibit(
        "memory_held",
        "KV memory when all agents are alive at once: copies grow with the agents, shared cells hardly.",
        "Paired bars by number of agents: the copied ones grow in proportion, the shared ones stay almost the same.",
        lambda m: figures.memory_held(m.grid, m.grid_depth, m.grid_caption),
    ),
    Exhibit(
        "bytes_per_token",
        "What a token takes in the models that people run: how attention shares its keys decides it.",
        "Log-log scatter plot of parameters against KiB of KV cache per token, a marker per kind of attention: "
        "multi-head highest, latent and windowed attention lowest.",
        lambda m: figures.bytes_per_token(catalogue_bytes(8192), 8192, _SHAPES),
    ),
    Exhibit(
        "agents_that_fit",
        "How many readers of one document fit a memory: with a copy each, and sharing it.",
        "Four panels, a model each, with paired bars by memory size on a logarithmic axis: the shared bar is several "
        "times the copied one.",
        lambda m: figures.agents_that_fit(agents_by_budget(_FLEET, [8, 16, 24, 80], n_tokens=8192), 8192, _SHAPES),
    ),
    Exhibit(
        "exactness",
        "Are they the same answers? Strategies whose batches have naive's shape agree with it to the last bit; packing "
        "changes the kernels' shapes and so the rounding.",
        "Dots by strategy on an axis of logit differences: swarmkv, pooled and shared all at zero; batched spread to "
        "the right.",
        lambda m: figures.exactness(m.grid, m.grid_caption),
    ),
    Exhibit(
        "position_error",
        "What positions are worth: keys all moved by the same amount cost no more than rounding does, as RoPE is "
        "relative; a wide gap inside the prefix stands out.",
        "Three curves of KL divergence against the shift: a gap in the prefix rises with the shift, moving all of it "
        "stays near the dotted noise floor.",
        lambda m: figures.position_error(m.positions, m.caption),
    ),
)


def _peers(reference: Measurements) -> Figure:
    """The deepest comparison. Peers need programs of their own, so the gallery shows the reference's."""
    runs = reference.peers[reference.peers.depth == reference.peers.depth.max()]
    return figures.peers(runs, reference.peers_caption)


def _yardsticks(reference: Measurements) -> Figure:
    return figures.yardsticks(reference.yardsticks, yardstick_ratios(reference.yardsticks), reference.peers_caption)


def _pipeline(reference: Measurements) -> Figure:
    timelines = {name: reference.pipeline_timelines[name] for name in ("naive", "batched")}
    rows = reference.pipeline[reference.pipeline.variant == "batched"]
    return figures.pipeline_timeline(
        timelines, dict(zip(rows.agent, rows.n_prefix, strict=False)), reference.pipeline_caption
    )


def draw(source: Measurements, folder: Path) -> list[Path]:
    """Draw every exhibit into a folder as PNG and SVG, and write the index page."""
    folder.mkdir(parents=True, exist_ok=True)
    for exhibit in EXHIBITS:
        figures.save(exhibit.draw(source), folder, exhibit.name)
    index = folder / "index.html"
    index.write_text(_page(), encoding="utf-8")
    return [folder / f"{exhibit.name}.png" for exhibit in EXHIBITS] + [index]


def _page() -> str:
    shown = "\n".join(
        f'<figure id="{e.name}">\n<img src="{e.name}.png" alt="{escape(e.alt)}" loading="lazy">\n'
        f'<figcaption>{escape(e.caption)} (<a href="{e.name}.svg">SVG</a>)</figcaption>\n</figure>'
        for e in EXHIBITS
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SwarmKV Lab: figures</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 54em; margin: 2em auto; padding: 0 1em; color: #222; }}
figure {{ margin: 0 0 3em; }}
img {{ max-width: 100%; height: auto; border: 1px solid #ddd; }}
figcaption {{ margin-top: 0.5em; }}
</style>
<h1>SwarmKV Lab: figures</h1>
<p>Drawn from the measurements of one machine, named under each figure. Numbers are measured unless they say predicted
or published.</p>
{shown}
</html>
"""
