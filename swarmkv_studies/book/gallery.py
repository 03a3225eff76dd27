"""The exhibits: every figure of the lab with its notebook, its data, a caption and an alt text, in the book's order.

``draw`` makes the files of figures/ from measurements. The book shows the committed ones, with these words.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.files import DATA, ROOT
from swarmkv_studies.book.explorer import explorer
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.kv_sizing.memory import bytes_by_model
from swarmkv_studies.many_machines.shipping import break_even_table
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED_PREFILL

FIGURES = ROOT / "figures"
_H200 = measurements("gpu/qwen2.5-7b")
_SHAPES = "predicted from the models' shapes (data/catalogue.csv, data/headers.toml), KV in f16"


@dataclass(frozen=True)
class Exhibit:
    """A figure. caption: what it shows. alt: what it looks like, for people who cannot see it.

    notebook: the one that asks its question. data: the file behind it. A bare name is measured by every make reproduce,
    so it is drawn from the reader's own; one in data/ is the repository's.
    """

    name: str
    notebook: str
    data: str
    caption: str
    alt: str
    draw: Callable[[Measurements], Figure]

    @property
    def of_reference(self) -> bool:
        """Whether it is drawn from what the repository holds, whoever draws it."""
        return self.data.startswith("data/")


def draw(source: Measurements, folder: Path) -> list[Path]:
    """Draw every exhibit to a folder, as PNG and SVG, and the explorer's page beside them. Returns all paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for exhibit in EXHIBITS:
        studies.save(exhibit.draw(measurements() if exhibit.of_reference else source), folder, exhibit.name)
    page = folder / "explorer.html"
    about_data = Path(os.path.relpath(DATA / "README.md", folder)).as_posix()
    page.write_text(explorer(source, about_data), encoding="utf-8", newline="\n")
    return [*(folder / f"{exhibit.name}.{kind}" for exhibit in EXHIBITS for kind in ("png", "svg")), page]


# fmt: off
EXHIBITS = (
    Exhibit("idea", "00_tour", "data/README.md",
        "The idea. Naive prefills the document for every agent. Fan-out prefills it once; each agent is given its "
        "cells of the KV cache, and its question goes on at position n.",
        "Two panels of small squares, a row per agent. Left, each row begins with ten blue squares, the document. "
        "Right, one row has them; the agents' rows begin with pale hatched ones. Questions and answers follow in each "
        "row.",
        lambda m: studies.idea()),
    Exhibit("timeline", "00_tour", "timelines.csv",
        "Who did what when. naive prefills the document for every agent, swarmkv once. The agents' remaining work is "
        "so short that it is shown again below, in milliseconds.",
        "Two Gantt charts on one time axis, a lane per agent. Above, each lane has a long prefill bar, one after "
        "another. Below, there is one for all. A third chart shows the agents' short phases enlarged.",
        lambda m: studies.timeline({name: m.timelines[name] for name in ("naive", "swarmkv")}, m.bench_caption)),
    Exhibit("bytes_per_token", "01_kv_sizing", "data/catalogue.csv",
        "What models keep of each token of a document. What they keep decides it, not how large they are: keys and "
        "values of every head, of groups of heads, or compressed; of all tokens or of the last ones; or a state of "
        "fixed size in most layers.",
        "A row per model with a mark on a logarithmic axis of kB per token, the largest first: multi-head attention is "
        "highest, then grouped heads; compressed, windowed and hybrid models are lowest.",
        lambda m: studies.bytes_per_token(bytes_by_model(8192), 8192, _SHAPES)),
    Exhibit("position_error", "02_snapshot_and_rope", "positions.csv",
        "What a wrong position costs. If document and branch move together, only the rounding changes, because RoPE "
        "is relative. A wide gap inside the document changes the predictions, and a branch that starts too late far "
        "more.",
        "Curves of KL divergence against a number of positions, logarithmic axes. Where document and branch move "
        "together, the curve stays near the dotted noise floor; the others rise.",
        lambda m: studies.position_error_figure(m.positions, m.positions_caption)),
    Exhibit("snapshot_layout", "02b_snapshot_file", "data/catalogue.csv",
        "Where a snapshot's bytes are: a short header, the positions, then all layers' keys and all layers' values. "
        "SmolLM2-135M, 3,501 tokens, without flash attention.",
        "A bar over the whole length, half keys and half values; below it the first ten fields as boxes with their "
        "names and bytes, nine small ones and the keys of the first layer.",
        lambda m: studies.snapshot_layout(
            lab.SequenceState.predicted(lab.geometry("smollm2-135m"), 3501).parts,
            f"smollm2-135m, 3,501 tokens, {_SHAPES}")),
    Exhibit("strategies", "03_naive_vs_fanout", "bench.json",
        "All strategies, from the call: when the first and the last agent have their first token, and when all have "
        "answered. The dotted line is the ideal: one prefill, then the agents one after another, and no other cost; "
        "bars beyond it had faster prefills by chance.",
        "Two panels with a row per strategy. Left, a line from the first agent's first token to the last agent's: "
        "naive's is long, the others' are short. Right, bars: naive's is about twice as long as the others.",
        lambda m: studies.strategies(m.bench["summary"], m.bench_caption)),
    Exhibit("latency", "04_depth_and_agents", "grid.csv",
        "Seconds from the call until all agents have answered, against the length of the document and against the "
        "number of agents. Points are measured; curves are predicted by the cost model. swarmkv and pooled lie close "
        "to shared.",
        "Two panels. Left, logarithmic axes: naive is above the others, further for long documents. Right: naive rises "
        "in a straight line with the agents, the others stay nearly flat.",
        lambda m: studies.latency(m.grid, m.grid_caption)),
    Exhibit("speedup_map", "04_depth_and_agents", "grid.csv",
        "How many times as early as naive all agents end with shared, by document length and number of agents. What "
        "was not measured is hatched; its numbers are predicted by the cost model.",
        "Table of coloured cells with document length on the x axis and the number of agents on the y axis: dark for "
        "one agent, brightest at the top right. Some cells are hatched.",
        lambda m: studies.speedup_map(m.grid, caption=m.grid_caption)),
    Exhibit("worth", "04_depth_and_agents", "grid.csv",
        "How long may answers be before sharing stops paying? Short answers gain most, as the prefill is most of the "
        "work. Where answers are long, packing still gains (batched). Curves are predicted by the cost model; marks "
        "are measured.",
        "Falling curves over a logarithmic axis of tokens per answer, two for each number of agents, solid for shared "
        "and dashed for batched. The solid ones come close to a dotted line at 1.1; the dashed ones of many agents "
        "stay above it.",
        lambda m: studies.worth(m.grid, m.environment("grid.json")["settings"]["max_tokens"], caption=m.grid_caption)),
    Exhibit("break_even", "04_depth_and_agents", "grid.csv",
        "How many times as early as naive two agents end, if a prefill were as fast as the x axis says and everything "
        "else took as long as it does here (solid) and on an NVIDIA H200 (dashed). A faster prefill leaves less to "
        "save, and copies take as long as before. Marks: each machine's own prefill.",
        "Falling curves over a logarithmic axis of tokens per second. All begin near two times; those of swarmkv fall "
        "below a dotted line at one, those of shared stay above it.",
        lambda m: studies.break_even(
            {"this processor, SmolLM2-135M": m.grid, "NVIDIA H200, Qwen2.5-7B": _H200.grid},
            caption=f"{m.grid_caption}\n{_H200.grid_caption}")),
    Exhibit("packing", "04_depth_and_agents", "grid.csv",
        "How much work per agent is saved if all agents are packed into one batch (batched) instead of decoded one "
        "after another (shared): little for two, and more for each further agent, at any depth.",
        "One curve per depth: the ratio of work against the number of agents. It is near 1 for one agent, "
        "above it for two, and then it rises.",
        lambda m: studies.packing(m.grid, m.grid_caption)),
    Exhibit("verdict", "05_peers", "data/reference/peers_1024.csv",
        "The lab against the best of what people use today, if agents come one after another, if all come at once, "
        "and in the prefill alone. All at once, a program that serves one agent at a time is a queue. The prefill is "
        "a matter of kernels: transformers multiplies bfloat16 matrices, which this processor does in hardware.",
        "Three panels of bars, the lab's strategies in orange at the top and other programs in grey below, a dot per "
        "run. Left, the shortest are about equally long. In the middle, one of the lab's is the shortest, and one grey "
        "bar is many times as long. Right, one grey bar is shorter than the lab's.",
        lambda m: studies.verdict(m.peers, m.peers_caption)),
    Exhibit("pipeline", "06_pipeline", "data/reference/pipeline_timelines.csv",
        "A graph of agents over one document, the faster of two rounds. Above, without watermarks: nobody answers "
        "before the document is read. "
        "Below, two agents begin at their watermarks, while the prefill goes on; two begin when it ends; and a "
        "reviewer reads their answers.",
        "Two Gantt charts on one time axis, a lane per agent, each with one long prefill bar. Above, all agents have "
        "short bars at its end. Below, it has three dotted lines, at two of which an agent answers; the others have "
        "short bars at its end. Three small charts enlarge, in milliseconds, what the agents do at each dotted line.",
        lambda m: studies.pipeline_timeline(
            {name: m.pipeline_timelines[name] for name in ("batched, waiting", "batched")},
            m.pipeline[m.pipeline.variant == "batched"].set_index("agent").n_prefix.to_dict(),
            m.pipeline_caption)),
    Exhibit("ship_or_recompute", "08_many_machines", "data/reference/ship.csv",
        "Send a document's cache to another machine, or compute it there again? A snapshot arrives first if the link "
        "is faster than S/T, its bytes over the seconds of a prefill. Lines: SmolLM2-135M with the prefill that was "
        "measured on this machine, and Qwen2.5-7B with the one that the article published for a GTX 1080, both at the "
        "same tokens per second for every length.",
        "Map with document length on the x axis and bandwidth on the y axis, both logarithmic. Two nearly flat lines, "
        "the larger model's about five times as high. Above them shipping is faster, below them computing again. "
        "Dotted lines mark links of 100 megabits to 10 gigabits per second.",
        lambda m: studies.ship_or_recompute(
            break_even_table(
                {"smollm2-135m": m.prefill_tokens_per_s, "qwen2.5-7b": PUBLISHED_PREFILL},
                [256, 512, 1024, 2048, 3501, 5000, 7000]),
            m.races, f"{m.ship_caption}; qwen2.5-7b: the published prefill's speed")),
    Exhibit("composed_quality", "10_own_prompts", "data/reference/composed.csv",
        "Agents that each have a prompt of their own before the document: what it costs to take the document's cells "
        "from behind something else, against the tokens that each agent then computes. The band is what other "
        "positions or kernels change in a full prefill.",
        "KL against tokens, logarithmic axes. Three falling curves, for cells computed behind nothing, a neutral "
        "prompt and another agent's role, all far left of a dotted line at the full prefill. A star above them: the "
        "document put first. Grey points above: two documents computed apart.",
        lambda m: studies.composed_quality_figure(
            studies.composed_quality(studies.score(m.composed)), m.composed_caption)),
    Exhibit("beside_llama_server", "11_agents", "data/reference/serving.csv",
        "Eight requests at once by HTTP, to the lab's server and to llama-server with eight slots: a role before one "
        "document (composed), one leading document, eight documents that share nothing; and how long short requests "
        "wait while a document of 3,501 tokens is read (two to eight of them in a round).",
        "Four panels of bars with a dot per round. In the first two the lab's bar is about a sixth of llama-server's; "
        "in the third both are about equally long; in the fourth, waiting, it is about a quarter.",
        lambda m: studies.beside_llama_server(m.serving, m.serving_caption)),
)
# fmt: on


if __name__ == "__main__":
    draw(measurements(), FIGURES)
