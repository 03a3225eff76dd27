"""Steps: what reproduce measures, one after another, each file by one of them. An interrupted run is continued.

``make reference`` runs all steps, a reader's ``make reproduce`` those that are for readers, and
``python -m swarmkv_studies.cli.steps NAME...`` these alone, for the reference.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.study import ARMS, about_study
from swarmkv_studies.common.kept import is_stamped, kept_bench, once, stamp
from swarmkv_studies.common.measurements import Measurements, machine
from swarmkv_studies.common.profiles import Profile
from swarmkv_studies.common.provenance import environment
from swarmkv_studies.common.rounds import plan
from swarmkv_studies.common.sweep import sweep_rounds
from swarmkv_studies.llama_guard.spinning import WAITING
from swarmkv_studies.many_machines.bench import against_one_process
from swarmkv_studies.many_machines.exactness import what_keeps_bits
from swarmkv_studies.many_machines.shipping import ship_times
from swarmkv_studies.peers import strategies as peer_strategies
from swarmkv_studies.peers.bench import compare_peers
from swarmkv_studies.peers.build import PROGRAMS, libraries_without_avx512, program
from swarmkv_studies.peers.formats import weight_formats
from swarmkv_studies.pipeline.bench import compare_pipeline, what_if

# Whose answers are scored: the default model, which is small enough for every machine, and one that answers well.
READERS = (None, "qwen2.5-coder-0.5b")

# (peers, agents) by depth; a long document with the fastest peer of those that keep a prefix, and with the one that
# prefills fastest.
PEERS = ((peer_strategies.PEERS, (1, 4, 8)), (("server_warm", "transformers"), (1, 4)))

# What workers are measured with: tokens of the document, and (workers x threads of each, agents, repeats). One worker
# costs a few percent, which are only seen in many repeats.
SHARED_DEPTH = 1024
CREWS = (((1, 2), 8, 24), ((1, 1), 64, 3), ((2, 1), 64, 3))

# Rounds of how threads wait, by the number of busy programs beside them.
SPUN = {0: 20, 2: 6, 10: 4}

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
    """Some files, and the function that measures and writes them. The last JSON file among them says where."""

    name: str
    files: Sequence[str]
    measure: Callable[[Setup], Any]
    for_readers: bool = False
    """whether a reader's reproduce measures it; the others are measured for the reference alone"""


def run_step(step: Step, setup: Setup) -> None:
    """Measure a step's files, unless they are there, and write the machine into each row of the CSV files."""
    paths = [setup.data / name for name in step.files]
    if all(map(is_stamped, paths)):
        print(f"{step.name}: kept; remove {', '.join(step.files)} in {setup.data.name}/ to measure again")
        return
    print(f"measuring {step.name}", flush=True)
    step.measure(setup)
    about = [name for name in step.files if name.endswith(".json")]
    where = Measurements(setup.data).environment(about[-1]) if about else environment(setup.model)
    for path in paths:
        if path.suffix == ".csv":
            stamp(path, machine(where))


def require_for_reference() -> None:
    """Raise one SwarmKVError with all that the reference needs and this machine lacks, before an hour is spent."""
    missing = []
    programs = [partial(program, name) for name in PROGRAMS]
    asked: list[Callable[[], Any]] = [_require_peers, libraries_without_avx512, *programs]
    for ask in asked:
        try:
            ask()
        except SwarmKVError as error:
            missing.append(str(error))
    if missing:
        raise SwarmKVError(f"the reference cannot be measured here: {'; '.join(dict.fromkeys(missing))}")


def _bench(setup: Setup) -> None:
    chosen = setup.chosen
    how: dict[str, Any] = {"repeats": chosen.repeats, "max_tokens": chosen.max_tokens}
    kept_bench(setup.data, setup.model, setup.tokens, depth=chosen.bench_depth, **how)


def _grid(setup: Setup) -> None:
    grid = plan(
        setup.model, setup.tokens, setup.chosen.rounds, list(lab.STRATEGIES), max_tokens=setup.chosen.max_tokens
    )
    sweep_rounds(grid, setup.chosen.rounds, path=setup.data / "grid.csv")


def _peers(setup: Setup, i: int) -> None:
    """Strategies beside peers. All read the long document with flash attention; it has fewer peers and agents."""
    (depth, repeats), (peers, n_agents) = setup.chosen.peers[i], PEERS[i]
    compare_peers(
        setup.model,
        setup.tokens,
        depth=depth,
        n_agents=n_agents,
        peers=peers,
        path=setup.data / f"peers_{depth}.csv",
        max_tokens=setup.chosen.max_tokens,
        repeats=repeats,
        flash_attn=True if depth == setup.chosen.depth else "auto",
    )


def _pipeline(setup: Setup) -> None:
    """The dossier's pipeline. The JSON is written last, as a sign of the end."""
    repeats = setup.chosen.live_repeats

    def measured() -> dict[str, Any]:
        pipeline = studies.load_pipeline("dossier", setup.model, n_tokens=setup.chosen.pipeline)
        rows, timelines = compare_pipeline(pipeline, repeats=repeats)
        rows.to_csv(setup.data / "pipeline.csv", index=False)
        timelines.to_csv(setup.data / "pipeline_timelines.csv", index=False)
        _whole(rows.repeat.nunique(), repeats)
        return environment(setup.model, depth=setup.chosen.pipeline)

    once(setup.data / "pipeline.json", measured)


def _formats(setup: Setup) -> None:
    """Weight formats of the smallest model, made of its published file; the default model is one of them."""
    prefix, repeats = setup.tokens[: setup.chosen.depth], setup.chosen.live_repeats
    once(setup.data / "formats.csv", lambda: weight_formats("smollm2-135m", prefix, repeats=repeats))
    with lab.load_model("smollm2-135m") as source:
        once(setup.data / "formats.json", lambda: environment(source))


def _positions(setup: Setup) -> None:
    once(
        setup.data / "positions.csv",
        lambda: studies.position_error(setup.model, setup.tokens[: setup.chosen.positions]),
    )
    once(setup.data / "positions.json", lambda: environment(setup.model))


def _ship(setup: Setup) -> None:
    once(setup.data / "ship.csv", lambda: ship_times(setup.model, setup.tokens[:2048], LINKS))
    once(setup.data / "ship.json", lambda: environment(setup.model))


def _spinning(setup: Setup) -> None:
    """How threads wait on a quiet machine and beside two and ten busy programs: minutes, most of them libgomp's own."""

    def measured() -> pd.DataFrame:
        rows = [studies.compare_spinning(setup.model.path, [busy], repeats=n) for busy, n in SPUN.items()]
        _whole(sum(map(len, rows)), len(WAITING) * sum(SPUN.values()))
        return pd.concat(rows)

    once(setup.data / "spinning.csv", measured)
    once(setup.data / "spinning.json", lambda: environment(setup.model))


def _cluster(setup: Setup) -> None:
    """Workers on this machine: what they cost, and what keeps the bits."""
    model, data, prefix = setup.model, setup.data, setup.tokens[:SHARED_DEPTH]
    agents = list(lab.load_agents("dossier").values())

    def crews() -> pd.DataFrame:
        return pd.concat(
            [
                against_one_process(model, prefix, (agents * n)[:n], [crew], repeats=repeats)
                for crew, n, repeats in CREWS
            ]
        )

    def bits() -> pd.DataFrame:
        libraries = {"llama.cpp without AVX-512": libraries_without_avx512()}
        return what_keeps_bits(model, prefix, model.ask(agents[0]), libraries)

    once(data / "cluster.csv", crews)
    once(data / "exactness.csv", bits)
    once(data / "cluster.json", lambda: environment(model))


def _study(setup: Setup) -> None:
    """The study by both models, strategies that are exact twice; and what becomes of a review if a finding changes.

    Each arm is a file of its own until all are there, so that an interrupt costs one of them.
    """
    parts, about = [], {}
    for source in READERS:
        with lab.load_model(source) as model:
            about[model.name] = about_study(model)
            for arm in ARMS:
                parts.append(setup.data / f"study-{model.name}-{arm}.csv")
                repeats = 2 if arm in ("swarmkv", "pooled", "shared") else 1
                once(parts[-1], partial(studies.study, model, arms=[arm], repeats=repeats))
    once(setup.data / "study.csv", lambda: pd.concat(map(read_study, parts)))
    once(setup.data / "study.json", lambda: about)

    def review() -> pd.DataFrame:
        with lab.load_model(READERS[-1]) as model:
            other = "The signing key was stolen last week. The buyer should not sign before it is replaced."
            return what_if(studies.load_pipeline("dossier", model), {"security": other})

    once(setup.data / "review.csv", review)
    for part in parts:
        part.unlink()


def _composed(setup: Setup) -> None:
    """Answers over a document's cells behind other prompts; and where those cells are other ones."""
    studies.composed_study(setup.model, path=setup.data / "composed.csv")
    once(setup.data / "composed_seam.csv", lambda: studies.composed_seam(setup.model))
    once(setup.data / "composed.json", lambda: environment(setup.model))


def _composed_rounds(setup: Setup) -> None:
    """Eight agents with eight roles, end to end."""
    document = setup.model.document(lab.load_document("dossier"))[: setup.chosen.depth]

    def measured() -> pd.DataFrame:
        return studies.composed_rounds(setup.model, document, repeats=setup.chosen.repeats)

    once(setup.data / "composed_rounds.csv", measured)
    once(setup.data / "composed_rounds.json", lambda: environment(setup.model, depth=len(document)))


def _require_peers() -> None:
    """Raise SwarmKVError if a peer is missing; which ones, and why, is on stderr."""
    if len(peer_strategies.available()) < len(peer_strategies.PEERS):
        raise SwarmKVError("peers were left out (above)")


def _whole(found: int, wanted: int) -> None:
    """A measurement returns its complete rounds after an interrupt; here the interrupt goes on."""
    if found < wanted:
        raise KeyboardInterrupt


BENCH = Step("bench", ("bench.csv", "timelines.csv", "bench.json"), _bench, True)
# In this order. The study comes last, as it takes about as long as all others together, and needs a second model.
STEPS = (
    BENCH,
    Step("grid", ("grid.csv", "grid.json"), _grid, True),
    Step("peers, 1,024 tokens", ("peers_1024.csv", "peers_1024.json"), lambda setup: _peers(setup, 0)),
    Step("peers, 3,501 tokens", ("peers_3501.csv", "peers_3501.json"), lambda setup: _peers(setup, 1)),
    Step("pipeline", ("pipeline.csv", "pipeline_timelines.csv", "pipeline.json"), _pipeline),
    Step("formats", ("formats.csv", "formats.json"), _formats),
    Step("positions", ("positions.csv", "positions.json"), _positions, True),
    Step("ship", ("ship.csv", "ship.json"), _ship),
    Step("cluster", ("cluster.csv", "exactness.csv", "cluster.json"), _cluster),
    Step("spinning", ("spinning.csv", "spinning.json"), _spinning),
    Step("composed rounds", ("composed_rounds.csv", "composed_rounds.json"), _composed_rounds),
    Step("composed", ("composed.csv", "composed_seam.csv", "composed.json"), _composed),
    Step("study", ("study.csv", "review.csv", "study.json"), _study),
)


def chosen_steps(reference: bool) -> Iterable[Step]:
    """All steps for the reference; otherwise those of the article's experiment, the grid and the positions."""
    return [step for step in STEPS if reference or step.for_readers]


def main(names: Sequence[str]) -> None:
    """Measure some steps for the reference, by their names."""
    by_name = {step.name: step for step in STEPS}
    for name in names:
        if name not in by_name:
            raise SwarmKVError(f"step {not_one_of(name, by_name)}")
    with lab.load_model() as model:
        setup = Setup(model, model.read(lab.load_document("dossier")), studies.profile("full"), REFERENCE)
        for name in names:
            run_step(by_name[name], setup)


if __name__ == "__main__":
    main(sys.argv[1:])
