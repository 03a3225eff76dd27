"""The explorer page: the race as measured, and three panels that follow sliders; without a kernel, without a network.

The page computes by itself. All its constants come from here: shapes, block sizes, the fitted cost model, what was
measured. Its few formulas (templates/formulas.js) are those of analysis and sizing, and a test compares the results.
"""

from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KV_TYPES, UBATCH, ggml_type, pad
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import Measurements, measurements
from swarmkv_studies.common.style import PHASES, STRATEGY
from swarmkv_studies.kv_sizing.memory import TAIL
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED_PREFILL, on_gpus

_DEPTHS = (128, 256, 512, 1024, 2048, 3501, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_LINKS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 400_000)  # 10^6 bits per second
_ASSUMED = (10, 100, 1000, 10_000, 100_000)
_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_PAGES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # short, and in our own order
_DEFAULT_MODEL = "smollm2-135m"  # whose cache was sent over slow links, and whose prefill the cost model knows
_RACED = ("naive", "swarmkv", "shared")


def explorer(source: Measurements, data: str) -> str:
    """The page's HTML; source: whose grid is shown. data: the link to what says where the numbers come from.

    What was raced over links is the reference's, as in the figures.
    """
    page = _PAGES.get_template("explorer.html")
    return page.render(constants=constants(source), grid=source.grid_caption, bench=source.bench_caption, data=data)


def constants(source: Measurements) -> dict[str, Any]:
    """All that the page knows. Times are in ms, and those of the races in s."""
    grid, model, races = source.grid, CostModel.fit(source.grid), _races()
    medians = grid.groupby(["strategy", "depth", "n_agents"])[["last_ttft_ms", "end_to_end_ms"]].median().round(3)
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in model.strategies}
    for (part, name), coefficients in model.coefficients.items():
        if name is not None:
            parts[name][part] = coefficients.tolist()
    return {
        "depths": sorted({*_DEPTHS, *grid.depth.tolist()}),
        "links": _LINKS,
        "race": _race(source),
        "speeds": _speeds(source, races),
        "looks": {name: STRATEGY[name] for name in model.strategies},
        "cost": {
            "prefill": model.coefficients["prefill", None].tolist(),
            "parts": parts,
            "sample": model.sample_ms,
            "packed": model.packed,
        },
        "measured": medians.reset_index().to_numpy().tolist(),
        "models": {name: _shape(name) for name in catalogue().index},
        "types": {name: GGML_QUANT_SIZES[ggml_type(name)] for name in KV_TYPES},
        "step": pad(1),
        "batch": UBATCH,
        "tail": TAIL,
        "races": races,
    }


def _shape(name: str) -> dict[str, Any]:
    """A model's caches: the full one and, with sliding windows, the windowed one. k, v: elements per token."""
    shape = geometry(name)
    caches = []
    for layers, _ in shape.caches():
        heads = sum(shape.heads[layer] for layer in layers)
        tensors = len(layers) * (2 if shape.head_dim_v else 1)
        caches.append({"tensors": tensors, "k": heads * shape.head_dim_k, "v": heads * shape.head_dim_v})
    return {"trained": shape.n_ctx_train, "window": shape.window, "caches": caches}


def _race(source: Measurements) -> dict[str, Any]:
    """The article's experiment: one round's spans by strategy (lane, phase, start and end in s), and all rounds' times.

    times: naive's end-to-end time over a strategy's, quartiles and median; end_to_end in s, a median.
    """
    summary, settings = source.bench["summary"], source.bench["environment"]["settings"]
    runs = {}
    for name in _RACED:
        spans, row = source.timelines[name], summary[name]
        start, end = ((spans[at] / 1e3).round(3) for at in ("start_ms", "end_ms"))
        rows = zip(spans.agent, spans.phase, start, end, strict=True)
        low, high = row["end_to_end_quartiles"]
        times = {"low": low, "median": row["end_to_end_speedup"], "high": high}
        runs[name] = {"spans": list(map(list, rows)), "endToEnd": row["end_to_end_ms"] / 1e3, "times": times}
    phases = {span[1] for run in runs.values() for span in run["spans"]}
    return {
        "runs": runs,
        "looks": {phase: [label, colour] for phase, (label, colour, _) in PHASES.items() if phase in phases},
        "rounds": summary[_RACED[0]]["rounds"],
        "tokens": settings["depth"],
        "agents": settings["n_agents"],
    }


def _speeds(source: Measurements, races: dict[str, Any]) -> list[dict[str, Any]]:
    """Prefills, each of one model: fitted (the cost model, at every length), published, measured at one length.

    Then those that are assumed, which are no model's. perSecond: tokens; None where it is fitted.
    """
    where = source.grid_caption.split(", llama")[0]
    found: list[tuple[str, str | None, float | None, str]] = [("fitted", _DEFAULT_MODEL, None, where)]
    found += [("published", "qwen2.5-7b", PUBLISHED_PREFILL, "Qwen2.5-7B Q4_K_M, GTX 1080")]
    found += [("measured", _DEFAULT_MODEL, races["perSecond"], f"{races['where']}, {races['tokens']:,} tokens")]
    for name, gpu in on_gpus().items():
        env, prefill_ms = gpu.bench["environment"], gpu.bench["summary"]["shared"]["prefill_ms"]
        model = name.replace("default", _DEFAULT_MODEL)
        found += [("measured", model, 1e3 * env["settings"]["depth"] / prefill_ms, f"{env['model']}, {env['gpu']}")]
    found += [("assumed", None, speed, "") for speed in _ASSUMED]
    return [dict(zip(("kind", "model", "perSecond", "where"), each, strict=True)) for each in found]


def _races() -> dict[str, Any]:
    """Sending against computing, measured at several bandwidths: medians of the rounds, in s."""
    reference = measurements()
    columns = ["load_ms", "compute_ms"]
    medians = reference.ship.groupby("bandwidth")[columns].median() / 1e3
    return {
        "model": _DEFAULT_MODEL,
        "type": "f16",
        "tokens": int(reference.ship.depth.iloc[0]),
        "where": reference.ship_caption.split(", llama")[0],
        "perSecond": reference.prefill_tokens_per_s,
        "points": medians.reset_index().to_numpy().round(6).tolist(),
    }
