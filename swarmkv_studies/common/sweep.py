"""sweep: a grid of rounds each saved as soon as it is complete."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.strategies import STRATEGIES, Strategy
from swarmkv_lab.files import as_json, reason, user_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.provenance import environment, keep
from swarmkv_studies.common.rounds import Plan, Round, measure, plan, record, rounds

Rows = list[dict[str, Any]]
# All rows of one file were measured with the same values of these.
_SAME = ("processor", "gpu", "llama_cpp", "model_hash", "n_threads", "settings")
_MEND = "pass another path, or remove this file and the .json beside it"


def sweep(
    model: Model,
    tokens: Sequence[int] | np.ndarray,
    *,
    depths: Sequence[int],
    n_agents: Sequence[int],
    strategies: Sequence[str | Strategy] = tuple(STRATEGIES),
    repeats: int = 3,
    agents: Prompts | None = None,
    max_tokens: int = 32,
    path: str | Path | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure depths x n_agents x strategies x repeats: a DataFrame with a row per run (columns: data/README.md).

    path: a CSV file that is written anew after each round, once all strategies have run in it; a JSON file beside it
    holds the machine, the versions and the settings. After an interrupt, the same call goes on with the first round
    that is missing; a file measured with other settings or on another machine is refused (SwarmKVError). Without a
    path, an interrupt returns the complete rounds, with a warning. The other arguments are as in fan_out.
    """
    how: dict[str, Any] = {"max_tokens": max_tokens, "settings": ContextSettings(**settings)}
    asked = plan(model, tokens, rounds(depths, n_agents, repeats), strategies, agents=agents, **how)
    return sweep_rounds(asked, path)


def sweep_rounds(plan: Plan, path: str | Path | None = None) -> pd.DataFrame:
    """Like sweep, for a Plan, whose rounds may be of any points."""
    names = [strategy.name for strategy in plan.strategies]
    file = None if path is None else user_path(path)
    rows = [] if file is None else _kept(file, _about(plan))
    measured = {(_round(row), row["strategy"]) for row in rows}
    left = [this for this in plan.rounds if not all((this, name) in measured for name in names)]
    new: Rows = []
    try:
        for this, run, exactness in measure(plan, left):
            new.append(record(this, run, exactness))
            if len(new) == len(names):  # the round is complete
                rows = [row for row in rows if not (_round(row) == this and row["strategy"] in names)] + new
                new = []
                if file is not None:
                    _write(file, rows)
    except KeyboardInterrupt:
        if file is not None or not rows:
            raise
        warnings.warn(f"interrupted: the {len(rows)} runs of complete rounds are returned", stacklevel=2)
    frame = pd.DataFrame(rows)
    wanted = [_round(row) in plan.rounds and row["strategy"] in names for row in rows]
    return frame[wanted].reset_index(drop=True)


def _round(row: dict[str, Any]) -> Round:
    return Round(row["repeat"], row["depth"], row["n_agents"])


def _about(plan: Plan) -> dict[str, Any]:
    """What a file of this plan's rounds says of them."""
    read = {"document": plan.prefix.tobytes(), "prompts": b"".join(map(np.ndarray.tobytes, plan.prompts.values()))}
    about: dict[str, Any] = {f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in read.items()}
    return environment(plan.model, plan.settings, **about, max_tokens=plan.max_tokens)


def _kept(path: Path, about: dict[str, Any]) -> Rows:
    """The rows of a sweep's file, none where there is none yet. Raises SwarmKVError if it belongs to another sweep."""
    if path.suffix != ".csv":
        raise SwarmKVError(f"{path.name or path}: a sweep is saved in a file whose name ends in .csv")
    sidecar = path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.exists() or sidecar.exists()):
            keep(sidecar, about)
        now, was = json.loads(as_json(about)), json.loads(sidecar.read_text(encoding="utf-8"))
        differences = [f"{name} {was.get(name)!r}, now {now[name]!r}" for name in _SAME if was.get(name) != now[name]]
        rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*Round._fields, "strategy"])
    except (OSError, ValueError, AttributeError) as error:  # also a NUL in the path, or a file that is no CSV
        raise SwarmKVError(f"{path.name} and {sidecar.name} cannot hold a sweep: {reason(error)}; {_MEND}") from error
    if differences:
        raise SwarmKVError(f"{path.name} was measured with {'; '.join(differences)}: {_MEND}")
    if not {*Round._fields, "strategy"} <= set(rows):
        raise SwarmKVError(f"{path.name} has columns {list(rows)}, and is not a sweep's file: {_MEND}")
    return rows.to_dict("records")


def _write(path: Path, rows: Rows) -> None:
    """Write a sweep's file anew, as a whole. Raises SwarmKVError for rows with other columns than the file's."""
    if list(rows[0]) != list(rows[-1]):
        raise SwarmKVError(f"{path.name} has columns {list(rows[0])}, but a run now has {list(rows[-1])}: {_MEND}")
    keep(path, pd.DataFrame(rows))
