"""reproduce: run the article's experiment on this machine, draw the figures and execute every notebook."""

import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from swarmkv_lab.analysis.article import article_table
from swarmkv_lab.analysis.measurements import Measurements
from swarmkv_lab.analysis.summary import bench_text
from swarmkv_lab.cli.notebooks import execute
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.documents import load_agents, load_document
from swarmkv_lab.fanout.spec import load_pipeline
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.figures import gallery
from swarmkv_lab.files import REFERENCE, ROOT, RUNS, as_json
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.measure.bench import bench
from swarmkv_lab.measure.grid import plan, sweep_rounds
from swarmkv_lab.measure.limits import load_against_read
from swarmkv_lab.measure.peer_bench import compare_peers
from swarmkv_lab.measure.pipeline_bench import compare_pipeline
from swarmkv_lab.measure.positions import position_error
from swarmkv_lab.measure.profiles import Profile, profile
from swarmkv_lab.measure.provenance import environment
from swarmkv_lab.measure.yardsticks import warm_ttft, yardsticks
from swarmkv_lab.peers import PEERS


def reproduce(profile_name: str | None = None, *, reference: bool = False) -> None:
    """Measure, draw the figures, execute the notebooks, and print the article's numbers beside ours.

    Data and executed notebooks go to data/runs/PROFILE, figures to figures/. Data that is already there is kept, so
    that an interrupted call can be continued; remove it to measure again. With ``reference`` (for maintainers) the data
    goes to data/reference, and notebooks/ is replaced. Raises SwarmKVError outside a checkout of the project.
    """
    chosen = profile(profile_name)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise SwarmKVError("there is no notebooks folder beside swarmkv_lab: run this in a checkout of the project")
    data = REFERENCE if reference else RUNS / chosen.name
    data.mkdir(parents=True, exist_ok=True)
    with load_model() as model:
        tokens = model.tokenize(load_document("dossier"))
        grid = plan(model, tokens, chosen.rounds, list(STRATEGIES), max_tokens=chosen.max_tokens)
        sweep_rounds(grid, chosen.rounds, path=data / "grid.csv")
        if not _kept(data / "bench.json"):
            _measure_bench(model, tokens, chosen, data)
        if not _kept(data / "positions.csv"):
            position_error(model, tokens[: chosen.positions]).to_csv(data / "positions.csv", index=False)
        if reference:
            _measure_peers(model, tokens, chosen, data)
            if not _kept(data / "snapshot_file.json"):
                times = {"snapshot_file": load_against_read(model, tokens[: chosen.depth])}
                (data / "snapshot_file.json").write_text(
                    as_json(times | environment(model), indent=1) + "\n", encoding="utf-8"
                )
            if not _kept(data / "pipeline.json"):
                _measure_pipeline(model, chosen, data)
    measured = Measurements(data)
    gallery.draw(measured, ROOT / "figures")

    out = ROOT / "notebooks" if reference else data / "notebooks"
    out.mkdir(exist_ok=True)
    for path in tqdm(notebooks, desc="notebooks", unit="notebook"):
        nbformat.write(execute(path, chosen.name), out / path.name)

    print(bench_text(measured.bench))
    print(
        f"\nThe article's experiment, published and measured here ({chosen.depth:,} tokens, profile {chosen.name}):\n"
    )
    print(article_table(measured.bench).to_string())
    print(f"\nwrote {data.relative_to(ROOT)}/, figures/index.html and {out.relative_to(ROOT)}/")


def _kept(path: Path) -> bool:
    if path.exists():
        print(f"keeping {path.relative_to(ROOT)}; remove it to measure it again", file=sys.stderr)
    return path.exists()


def _measure_bench(model: Model, tokens: np.ndarray, chosen: Profile, data: Path) -> None:
    """The article's experiment: two agents at the profile's depth. The JSON is written last, as a sign of the end."""
    report, runs = bench(
        model,
        tokens,
        depth=chosen.depth,
        n_agents=2,
        strategies=list(STRATEGIES),
        repeats=chosen.repeats,
        max_retries=chosen.repeats,
        max_tokens=chosen.max_tokens,
    )
    turns = [runs[i : i + len(STRATEGIES)] for i in range(0, len(runs), len(STRATEGIES))]
    turns.sort(key=lambda turn: turn[0].metrics["end_to_end_ms"])
    median = [run.timeline.assign(strategy=run.strategy) for run in turns[(len(turns) - 1) // 2]]
    pd.concat(median).to_csv(data / "timelines.csv", index=False)
    pd.DataFrame(report["runs"]).drop(columns="agents").to_csv(data / "bench.csv", index=False)
    if report["restore"] is None:  # bench was interrupted: it returns what it has measured
        raise KeyboardInterrupt
    (data / "bench.json").write_text(as_json(report, indent=1) + "\n", encoding="utf-8")


def _measure_peers(model: Model, tokens: np.ndarray, chosen: Profile, data: Path) -> None:
    """Compare strategies with all peers and with llama.cpp's own benchmarks; needs ``make peers``."""
    for depth, repeats in chosen.peers:
        path = data / f"peers_{depth}.csv"
        compare_peers(
            model,
            tokens,
            depth=depth,
            n_agents=(1, 4, 8),
            peers=PEERS,
            path=path,
            max_tokens=chosen.max_tokens,
            repeats=repeats,
        )
    shallow, deep = (tokens[:depth] for depth, _ in (chosen.peers[0], chosen.peers[-1]))
    if not _kept(data / "yardsticks.csv"):
        yardsticks(model, shallow, (1, 2, 4, 8, 16), repeats=7).to_csv(data / "yardsticks.csv", index=False)
    if not _kept(data / "warm_ttft.csv"):
        warm_ttft(model, deep, load_agents("dossier")).to_csv(data / "warm_ttft.csv", index=False)


def _measure_pipeline(model: Model, chosen: Profile, data: Path) -> None:
    """The dossier's pipeline, three rounds. The JSON is written last, as a sign of the end."""
    repeats = 3
    rows, timelines = compare_pipeline(load_pipeline("dossier", model, n_tokens=chosen.pipeline), repeats=repeats)
    rows.to_csv(data / "pipeline.csv", index=False)
    timelines.to_csv(data / "pipeline_timelines.csv", index=False)
    if rows.repeat.nunique() < repeats:  # interrupted: it returns the complete rounds
        raise KeyboardInterrupt
    (data / "pipeline.json").write_text(as_json(environment(model), indent=1) + "\n", encoding="utf-8")
