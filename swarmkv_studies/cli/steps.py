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
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.answers.study import about_study
from swarmkv_studies.common.kept import is_stamped, kept_bench, once, stamp
from swarmkv_studies.common.measurements import Measurements, machine
from swarmkv_studies.common.profiles import Profile
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import plan
from swarmkv_studies.common.sweep import sweep_rounds
from swarmkv_studies.many_machines.bench import against_one_process
from swarmkv_studies.many_machines.shipping import ship_times
from swarmkv_studies.peers import strategies as peer_strategies
from swarmkv_studies.peers.bench import compare_peers
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


Measured = Mapping[str, Callable[[], Any]]


class Step(NamedTuple):
    """Some files, and the function that measures them. The last JSON file among them says where.

    measure: writes the files, or returns what to write by name: a function each, which is called if the file is
    missing. A JSON file of the step's own name may be left to run_step.
    """

    name: str
    files: Sequence[str]
    measure: Callable[[Setup], Measured | None]
    for_readers: bool = False
    """whether a reader's reproduce measures it; the others are measured for the reference alone"""


def run_step(step: Step, setup: Setup) -> None:
    """Measure a step's files, unless they are there, and write the machine into each row of the CSV files."""
    paths = [setup.data / name for name in step.files]
    if all(map(is_stamped, paths)):
        print(f"{step.name}: kept; remove {', '.join(step.files)} in {setup.data.name}/ to measure again")
        return
    print(f"measuring {step.name}", flush=True)
    for name, measured in (step.measure(setup) or {}).items():
        once(setup.data / name, measured)
    about = [path for path in paths if path.suffix == ".json"][-1]
    if not about.exists():
        once(about, lambda: environment(setup.model))
    for path in paths:
        if path.suffix == ".csv":
            stamp(path, machine(Measurements(setup.data).environment(about.name)))


def require_for_reference() -> None:
    """Raise one SwarmKVError with all that the reference needs and this machine lacks, before an hour is spent."""
    if missing := peer_strategies.missing(peer_strategies.PEERS):
        raise SwarmKVError(f"the reference cannot be measured here: {'; '.join(dict.fromkeys(missing.values()))}")


def _bench(setup: Setup) -> None:
    chosen = setup.chosen
    how: dict[str, Any] = {"repeats": chosen.repeats, "max_tokens": chosen.max_tokens}
    kept_bench(setup.data, setup.model, setup.tokens, depth=chosen.bench_depth, **how)


def _grid(setup: Setup) -> None:
    rounds = setup.chosen.rounds
    grid = plan(setup.model, setup.tokens, rounds, list(lab.STRATEGIES), max_tokens=setup.chosen.max_tokens)
    sweep_rounds(grid, rounds, path=setup.data / "grid.csv")


def _peers(setup: Setup) -> None:
    """Strategies beside peers, eight agents."""
    depth, repeats = setup.chosen.peers
    how: dict[str, Any] = {"depth": depth, "repeats": repeats, "max_tokens": setup.chosen.max_tokens}
    path = setup.data / f"peers_{depth}.csv"
    compare_peers(setup.model, setup.tokens, n_agents=[8], peers=peer_strategies.PEERS, path=path, **how)


def _pipeline(setup: Setup) -> Measured:
    """The dossier's pipeline. The JSON is written last, as a sign of the end."""
    repeats = setup.chosen.live_repeats

    def measured() -> dict[str, Any]:
        pipeline = studies.load_pipeline("dossier", setup.model, n_tokens=setup.chosen.pipeline)
        rows, timelines = compare_pipeline(pipeline, repeats=repeats)
        if rows.repeat.nunique() < repeats:  # it returns its complete rounds after an interrupt; here that goes on
            raise KeyboardInterrupt
        rows.to_csv(setup.data / "pipeline.csv", index=False)
        timelines.to_csv(setup.data / "pipeline_timelines.csv", index=False)
        return environment(setup.model, depth=setup.chosen.pipeline)

    return {"pipeline.json": measured}


def _positions(setup: Setup) -> Measured:
    tokens = setup.tokens[: setup.chosen.positions]
    return {"positions.csv": lambda: studies.position_error(setup.model, tokens)}


def _ship(setup: Setup) -> Measured:
    return {"ship.csv": lambda: ship_times(setup.model, setup.tokens[:2048], LINKS)}


def _serving(setup: Setup) -> Measured:
    """The lab's server and llama-server, the same requests in turns: twenty minutes on two cores."""
    return {
        "serving.csv": lambda: studies.serving_rounds(setup.model, SHARED_DEPTH, repeats=5),
        "serving.json": lambda: environment(setup.model, depth=SHARED_DEPTH, llama_server=LLAMA_SERVER),
    }


def _cluster(setup: Setup) -> Measured:
    """What workers on this machine cost."""
    agents = list(lab.load_agents("dossier").values())
    one = partial(against_one_process, setup.model, setup.tokens[:SHARED_DEPTH])
    return {"cluster.csv": lambda: pd.concat([one((agents * n)[:n], [crew], repeats=each) for crew, n, each in CREWS])}


def _study(setup: Setup) -> Measured:
    """The study by both models, strategies that are exact twice."""
    path, about = setup.data / "study.csv", {}
    for source in READERS:
        with lab.load_model(source) as model:
            about[model.name] = about_study(model)
            studies.study(model, path=path)
            studies.study(model, arms=["swarmkv", "pooled", "shared"], repeats=2, path=path)
    return {"study.json": lambda: about}


def _composed(setup: Setup) -> Measured:
    """Answers over a document's cells behind other prompts; and where those cells are other ones."""
    studies.composed_study(setup.model, path=setup.data / "composed.csv")
    return {"composed_seam.csv": lambda: studies.composed_seam(setup.model)}


def _composed_rounds(setup: Setup) -> Measured:
    """Eight agents with eight roles, end to end."""
    document = setup.model.document(lab.load_document("dossier"))[: setup.chosen.depth]
    return {
        "composed_rounds.csv": lambda: studies.composed_rounds(setup.model, document, repeats=setup.chosen.repeats),
        "composed_rounds.json": lambda: environment(setup.model, depth=len(document)),
    }


BENCH = Step("bench", ("bench.csv", "timelines.csv", "bench.json"), _bench, True)
# In this order. The study comes last, as it takes about as long as all others together, and needs a second model.
STEPS = (
    BENCH,
    Step("grid", ("grid.csv", "grid.json"), _grid, True),
    Step("peers", ("peers_1024.csv", "peers_1024.json"), _peers),
    Step("pipeline", ("pipeline.csv", "pipeline_timelines.csv", "pipeline.json"), _pipeline),
    Step("positions", ("positions.csv", "positions.json"), _positions, True),
    Step("ship", ("ship.csv", "ship.json"), _ship),
    Step("cluster", ("cluster.csv", "cluster.json"), _cluster),
    Step("serving", ("serving.csv", "serving.json"), _serving),
    Step("composed rounds", ("composed_rounds.csv", "composed_rounds.json"), _composed_rounds),
    Step("composed", ("composed.csv", "composed_seam.csv", "composed.json"), _composed),
    Step("study", ("study.csv", "study.json"), _study),
)


def main(names: Sequence[str]) -> None:
    """Measure some steps for the reference, by their names."""
    by_name = {step.name: step for step in STEPS}
    with lab.load_model() as model:
        setup = Setup(model, model.read(lab.load_document("dossier")), studies.profile("full"), REFERENCE)
        for name in names:
            run_step(by_name[name], setup)


if __name__ == "__main__":
    main(sys.argv[1:])
