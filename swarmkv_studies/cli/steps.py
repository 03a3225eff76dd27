"""Steps: what reproduce measures, one after another, each file by one of them. An interrupted run is continued.

``make reference`` runs all steps, a reader's ``make reproduce`` those that are for readers, and
``python -m swarmkv_studies.cli.steps NAME...`` these alone, for the reference.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.answers.study import about_study
from swarmkv_studies.common.bench import kept_bench
from swarmkv_studies.common.measurements import Measurements, machine
from swarmkv_studies.common.profiles import Profile
from swarmkv_studies.common.provenance import environment, keep
from swarmkv_studies.common.rounds import plan
from swarmkv_studies.common.sweep import sweep_rounds
from swarmkv_studies.many_machines.bench import against_one_process
from swarmkv_studies.many_machines.shipping import ship_times
from swarmkv_studies.peers.bench import compare_peers
from swarmkv_studies.peers.strategies import PEERS
from swarmkv_studies.pipeline.bench import compare_pipeline

# Whose answers are scored: the default model, which is small enough for every machine, and one that answers well.
READERS = (None, "qwen2.5-coder-0.5b")

# What servers and workers are measured with: tokens of the document; and of workers (workers x threads of each,
# agents, repeats). One worker costs a few percent, which are only seen in many repeats.
SHARED_DEPTH = 1024
CREWS = (((1, 2), 8, 8), ((2, 1), 64, 3))

LLAMA_SERVER = (
    "8 slots, each with cells for a request and its answer, --no-kv-unified, or --kv-unified where it says so; "
    "batch size, threads, flash attention and KV types are the lab's"
)

# Bytes per second, of links that a snapshot is sent over.
LINKS = (2e6, 4e6, 8e6, 16e6, 32e6, 64e6, 128e6, 1e9)


@dataclass(frozen=True)
class Setup:
    """What a step measures, and where its files go."""

    model: lab.Model
    tokens: np.ndarray
    """of the dossier"""
    chosen: Profile
    data: Path


class Step(NamedTuple):
    """Some files, and what measures each of them. The last JSON file among them says where."""

    name: str
    files: Mapping[str, Callable[[Setup], Any] | None]
    """by name; what a function returns is written, unless it has written the file itself, as one that can be gone on
    with. None: it is written with another of these files"""
    for_readers: bool = False
    """whether a reader's reproduce measures it; the others are measured for the reference alone"""


def run_step(step: Step, setup: Setup) -> None:
    """Measure a step's files, unless they are there, and write the machine into each row of the CSV files."""
    paths = {setup.data / name: measured for name, measured in step.files.items()}
    if all(map(is_stamped, paths)):
        print(f"{step.name}: kept; remove {', '.join(step.files)} in {setup.data.name}/ to measure again")
        return
    print(f"measuring {step.name}", flush=True)
    for path, measured in paths.items():
        if measured and not is_stamped(path) and (what := measured(setup)) is not None:
            keep(path, what)
    about = [path.name for path in paths if path.suffix == ".json"][-1]
    for path in paths:
        if not is_stamped(path):  # no other text changes
            where = machine(Measurements(setup.data).environment(about))
            keep(path, pd.read_csv(path, dtype=str, keep_default_na=False).assign(machine=where))


def is_stamped(path: Path) -> bool:
    """Whether a file is whole: a CSV file is, once it says its machine. Others are written in one piece."""
    return path.exists() and (path.suffix != ".csv" or "machine" in pd.read_csv(path, nrows=0))


def _bench(setup: Setup) -> None:
    chosen = setup.chosen
    how: dict[str, Any] = {"repeats": chosen.repeats, "max_tokens": chosen.max_tokens}
    kept_bench(setup.data, setup.model, setup.tokens, depth=chosen.bench_depth, **how)


def _grid(setup: Setup) -> None:
    how: dict[str, Any] = {"strategies": list(lab.STRATEGIES), "max_tokens": setup.chosen.max_tokens}
    sweep_rounds(plan(setup.model, setup.tokens, setup.chosen.rounds, **how), setup.data / "grid.csv")


def _peers(setup: Setup) -> None:
    """Strategies beside peers, eight agents."""
    depth, repeats = setup.chosen.peers
    how: dict[str, Any] = {"depth": depth, "repeats": repeats, "max_tokens": setup.chosen.max_tokens}
    path = setup.data / "peers_1024.csv"
    compare_peers(setup.model, setup.tokens, n_agents=[8], peers=PEERS, path=path, **how)


def _pipeline(setup: Setup) -> dict[str, Any]:
    """The dossier's pipeline. The JSON is written last, as a sign of the end."""
    repeats = setup.chosen.live_repeats
    pipeline = studies.load_pipeline("dossier", setup.model, n_tokens=setup.chosen.pipeline)
    rows, timelines = compare_pipeline(pipeline, repeats=repeats)
    if rows.repeat.nunique() < repeats:  # it returns its complete rounds after an interrupt; here that goes on
        raise KeyboardInterrupt
    rows.to_csv(setup.data / "pipeline.csv", index=False)
    timelines.to_csv(setup.data / "pipeline_timelines.csv", index=False)
    return environment(setup.model, depth=setup.chosen.pipeline)


def _cluster(setup: Setup) -> pd.DataFrame:
    """What workers on this machine cost."""
    agents = list(lab.load_agents("dossier").values())
    one = partial(against_one_process, setup.model, setup.tokens[:SHARED_DEPTH])
    return pd.concat([one((agents * n)[:n], [crew], repeats=each) for crew, n, each in CREWS])


def _composed(setup: Setup) -> None:
    """Answers over a document's cells behind other prompts."""
    studies.composed_study(setup.model, path=setup.data / "composed.csv")


def _composed_rounds(setup: Setup) -> pd.DataFrame:
    """Eight agents with eight roles, end to end."""
    document = setup.model.document(lab.load_document("dossier"))[: setup.chosen.depth]
    return studies.composed_rounds(setup.model, document, repeats=setup.chosen.repeats)


def _study(setup: Setup) -> dict[str, Any]:
    """The study by both models, strategies that are exact twice. The JSON is written last, as a sign of the end."""
    path, about = setup.data / "study.csv", {}
    for source in READERS:
        with lab.load_model(source) as model:
            about[model.name] = about_study(model)
            studies.study(model, path=path)
            studies.study(model, arms=["swarmkv", "pooled", "shared"], repeats=2, path=path)
    return about


def _about(setup: Setup, **more: Any) -> dict[str, Any]:
    return environment(setup.model, **more)


BENCH = Step("bench", {"bench.csv": None, "timelines.csv": None, "bench.json": _bench}, True)
# In this order. The study comes last, as it takes about as long as all others together, and needs a second model.
STEPS = (
    BENCH,
    Step("grid", {"grid.csv": _grid, "grid.json": None}, True),
    Step("peers", {"peers_1024.csv": _peers, "peers_1024.json": None}),
    Step("pipeline", {"pipeline.csv": None, "pipeline_timelines.csv": None, "pipeline.json": _pipeline}),
    Step("positions", {
        "positions.csv": lambda setup: studies.position_error(setup.model, setup.tokens[: setup.chosen.positions]),
        "positions.json": _about,
    }, True),
    Step("ship", {
        "ship.csv": lambda setup: ship_times(setup.model, setup.tokens[:2048], LINKS),
        "ship.json": _about,
    }),
    Step("cluster", {"cluster.csv": _cluster, "cluster.json": _about}),
    Step("serving", {  # twenty minutes on two cores
        "serving.csv": lambda setup: studies.serving_rounds(setup.model, SHARED_DEPTH, repeats=5),
        "serving.json": partial(_about, depth=SHARED_DEPTH, llama_server=LLAMA_SERVER),
    }),
    Step("composed rounds", {
        "composed_rounds.csv": _composed_rounds,
        "composed_rounds.json": lambda setup: _about(setup, depth=setup.chosen.depth),
    }),
    Step("composed", {
        "composed.csv": _composed,
        "composed_seam.csv": lambda setup: studies.composed_seam(setup.model),
        "composed.json": _about,
    }),
    Step("study", {"study.csv": None, "study.json": _study}),
)  # fmt: skip


def main(names: Sequence[str]) -> None:
    """Measure some steps for the reference, by their names."""
    by_name = {step.name: step for step in STEPS}
    with lab.load_model() as model:
        setup = Setup(model, model.read(lab.load_document("dossier")), studies.profile("full"), REFERENCE)
        for name in names:
            run_step(by_name[name], setup)


if __name__ == "__main__":
    main(sys.argv[1:])
