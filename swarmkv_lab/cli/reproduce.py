"""reproduce: run the article's experiment on this machine, draw the figures and execute every notebook."""

import os
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.analysis.measurements import Measurements
from swarmkv_lab.analysis.summary import bench_text
from swarmkv_lab.cli.notebooks import execute, project_notebooks
from swarmkv_lab.figures import gallery
from swarmkv_lab.files import REFERENCE, ROOT, RUNS
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.measure.grid import plan, rounds
from swarmkv_lab.measure.kept import kept_bench, once
from swarmkv_lab.measure.limits import fresh_memory
from swarmkv_lab.measure.packing import packing
from swarmkv_lab.measure.peer_bench import compare_peers
from swarmkv_lab.measure.pipeline_bench import compare_pipeline, what_if
from swarmkv_lab.measure.profiles import Profile
from swarmkv_lab.measure.provenance import environment
from swarmkv_lab.measure.sweep import sweep_rounds
from swarmkv_lab.measure.yardsticks import warm_ttft, yardsticks

# The same bench six times, two rounds each, to see how steady its ratio is; and once with other numbers of agents.
CLOCK = [*rounds([1024], [4], 12), *rounds([1024], [2, 8, 16], 2)]

# Tokens after a snapshot whose predictions are compared with those after a copy that went through a codec.
CONTINUATION = 256

# Whose answers are scored: the default model, which is small enough for every machine, and one that answers well.
READERS = (None, "qwen2.5-coder-0.5b")

# The peers of a long document: the fastest of those that keep a prefix, and the one that prefills fastest.
DEEP_PEERS = ("server_warm", "transformers")


def reproduce(profile_name: str | None = None, *, reference: bool = False) -> None:
    """Measure, draw the figures, execute the notebooks, and print the article's numbers beside ours.

    Data, figures and executed notebooks go to data/runs/PROFILE. Data that is already there is kept, so that an
    interrupted call can be continued; remove it to measure again. With ``reference`` (for maintainers) the data goes to
    data/reference, and figures/ and notebooks/ are replaced. Raises SwarmKVError outside a checkout of the project.
    """
    chosen = lab.profile(profile_name)
    notebooks = project_notebooks()
    data = REFERENCE if reference else RUNS / chosen.name
    data.mkdir(parents=True, exist_ok=True)
    with lab.load_model() as model:
        tokens = model.tokenize(lab.load_document("dossier"))
        kept_bench(data, model, tokens, depth=chosen.depth, repeats=chosen.repeats, max_tokens=chosen.max_tokens)
        _print_table(Measurements(data), chosen)
        print("\nNext: a grid of depths and agents, the figures, the notebooks; then this table again.\n")
        grid = plan(model, tokens, chosen.rounds, list(lab.STRATEGIES), max_tokens=chosen.max_tokens)
        sweep_rounds(grid, chosen.rounds, path=data / "grid.csv")
        once(data / "positions.csv", lambda: lab.position_error(model, tokens[: chosen.positions]))
        once(data / "positions.json", lambda: environment(model))
        if reference:
            coded = tokens[: chosen.peers[0][0] + CONTINUATION]
            once(data / "codecs.csv", lambda: lab.codecs(model, coded, CONTINUATION))
            once(data / "codecs.json", lambda: environment(model, depth=len(coded), continuation=CONTINUATION))
            once(data / "tuning.csv", lambda: _measure_tuning(model, tokens, chosen))
            clock = plan(model, tokens, CLOCK, ["naive", "shared"], max_tokens=chosen.max_tokens)
            sweep_rounds(clock, CLOCK, path=data / "clock.csv")
            _measure_peers(model, tokens, chosen, data)
            prefix = tokens[: chosen.depth]
            once(data / "snapshot_file.json", lambda: _measure_memory(model, prefix))
            once(data / "pipeline.json", lambda: _measure_pipeline(model, chosen, data))
            once(data / "formats.json", lambda: _measure_formats(tokens, chosen, data))
            once(data / "review.csv", lambda: _measure_answers(data))
    measured = Measurements(data)
    drawn = gallery.FIGURES if reference else data / "figures"
    gallery.draw(measured, drawn, drawn)

    out = ROOT / "notebooks" if reference else data / "notebooks"
    out.mkdir(exist_ok=True)
    durations = []
    for path in tqdm(notebooks, desc="notebooks", unit="notebook"):
        start = time.perf_counter()
        nbformat.write(execute(path, chosen.name), out / path.name)
        durations.append((path.stem, chosen.name, round(time.perf_counter() - start, 1), os.cpu_count()))
    if not reference:
        columns = ["notebook", "profile", "seconds", "cpus"]
        pd.DataFrame(durations, columns=columns).to_csv(data / "notebooks.csv", index=False)

    _print_table(measured, chosen)
    print(f"\nwrote {data.relative_to(ROOT)}/, {drawn.relative_to(ROOT)}/index.html and {out.relative_to(ROOT)}/")


def _print_table(measured: Measurements, chosen: Profile) -> None:
    print(bench_text(measured.bench))
    print(
        f"\nThe article's experiment, published and measured here ({chosen.depth:,} tokens, profile {chosen.name}):\n"
    )
    print(lab.article_table(measured.bench).to_string())


def _measure_peers(model: lab.Model, tokens: np.ndarray, chosen: Profile, data: Path) -> None:
    """Compare strategies with all peers and with llama.cpp's own benchmarks; needs ``make peers``."""
    tuned = lab.fastest_settings(pd.read_csv(data / "tuning.csv"))
    for i, (depth, repeats) in enumerate(chosen.peers):
        compare_peers(
            model,
            tokens,
            depth=depth,
            n_agents=(1, 4, 8),
            peers=DEEP_PEERS if i else lab.peers.PEERS,
            path=data / f"peers_{depth}.csv",
            max_tokens=chosen.max_tokens,
            repeats=repeats,
            flash_attn=tuned["flash_attn"] if depth == chosen.depth else "auto",
        )
    shallow, deep = (tokens[:depth] for depth, _ in (chosen.peers[0], chosen.peers[-1]))
    once(data / "yardsticks.csv", lambda: yardsticks(model, shallow, (1, 2, 4, 8, 16), repeats=5))
    once(data / "yardsticks.json", lambda: environment(model))
    once(data / "packing.csv", lambda: pd.concat([packing(model, prefix) for prefix in (shallow, deep)]))
    once(data / "warm_ttft.csv", lambda: warm_ttft(model, deep, lab.load_agents("dossier")))


def _measure_memory(model: lab.Model, prefix: np.ndarray) -> dict[str, Any]:
    """A snapshot's file and its memory, with where they were measured."""
    file = lab.load_against_read(model, prefix)
    return {"snapshot_file": file, "fresh_memory": fresh_memory(file["bytes"]), **environment(model)}


def _measure_pipeline(model: lab.Model, chosen: Profile, data: Path) -> dict[str, Any]:
    """The dossier's pipeline, three rounds. The JSON is written last, as a sign of the end."""
    repeats = 3
    rows, timelines = compare_pipeline(lab.load_pipeline("dossier", model, n_tokens=chosen.pipeline), repeats=repeats)
    rows.to_csv(data / "pipeline.csv", index=False)
    timelines.to_csv(data / "pipeline_timelines.csv", index=False)
    if rows.repeat.nunique() < repeats:  # interrupted: it returns the complete rounds
        raise KeyboardInterrupt
    return environment(model)


def _measure_tuning(model: lab.Model, tokens: np.ndarray, chosen: Profile) -> pd.DataFrame:
    """What flash attention does: throughout, not at all, and for the prefill alone."""
    return lab.tune(model, tokens[: chosen.depth], n_threads=[default_threads()], repeats=chosen.repeats)


def _measure_formats(tokens: np.ndarray, chosen: Profile, data: Path) -> dict[str, Any]:
    """Weight formats of the smallest model, made of its published file. The JSON is written last, as a sign of the end.

    The default model is one of them, requantized already.
    """
    with lab.load_model("smollm2-135m") as source:
        frame = lab.weight_formats(source, tokens[: chosen.depth], chosen.formats, repeats=chosen.live_repeats)
        frame.to_csv(data / "formats.csv", index=False)
        if frame.repeats.min() < chosen.live_repeats:  # interrupted: it returns the complete rounds
            raise KeyboardInterrupt
        return {"peaks": lab.peaks(), **environment(source)}


def _measure_answers(data: Path) -> pd.DataFrame:
    """The study by both models, strategies that are exact twice; and what becomes of a review if a finding changes."""
    for source in READERS:
        with lab.load_model(source) as model:
            lab.study(model, path=data / "study.csv")
            lab.study(model, arms=("swarmkv", "pooled", "shared"), repeats=2, path=data / "study.csv")
    with lab.load_model(READERS[-1]) as model:
        other = "The signing key was stolen last week. The buyer should not sign before it is replaced."
        return what_if(lab.load_pipeline("dossier", model), {"security": other})
