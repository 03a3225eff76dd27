"""RunLog: saves each run to disk when it is measured, so that an interrupted sweep can continue."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.files import as_json, reason, replacing, user_path

_MEND = "pass another path, or remove this file and the .json beside it"
# All rows of one file were measured with the same values of these.
_SAME = ("processor", "gpu", "llama_cpp", "model_hash", "n_threads", "settings")


class Round(NamedTuple):
    """One repeat of one point of a grid; every strategy runs once in it."""

    repeat: int
    depth: int
    n_agents: int


class RunLog:
    """A CSV file with a row per run, flushed to disk after each run, and a JSON file beside it with the provenance.

    While a round is not finished, an NPZ file beside them holds the reference's (naive's) answers, with which the other
    strategies are compared. Raises SwarmKVError if the CSV file is not a sweep's, or was measured on another machine or
    with other settings.
    """

    def __init__(self, path: Path, environment: dict[str, Any]) -> None:
        self.path = path = user_path(path)
        if path.suffix != ".csv":
            raise SwarmKVError(f"{path.name or path}: a sweep is saved in a file whose name ends in .csv")
        self._answers = path.with_suffix(".npz")
        sidecar = path.with_suffix(".json")
        text = as_json(environment, indent=1) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or sidecar.exists():
                _require_same(path, sidecar, json.loads(text))
                _drop_torn_line(path)
            else:
                with replacing(sidecar) as file:
                    file.write(text.encode())
            self._done = set(_keys(self._rows()))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file that is no CSV
            raise SwarmKVError(f"{path.name} cannot hold a sweep: {reason(error)}; {_MEND}") from error

    def __contains__(self, key: tuple[Round, str]) -> bool:
        return key in self._done

    def append(self, this: Round, record: dict[str, Any], reference: Sequence[Branch] | None = None) -> None:
        """Save one run; it is on disk when this returns. reference: its answers, if others are compared with them."""
        if reference is not None:
            arrays: dict[str, Any] = {f"logits{i}": branch.logits for i, branch in enumerate(reference)}
            arrays |= {f"tokens{i}": np.array(branch.tokens, np.int32) for i, branch in enumerate(reference)}
            np.savez(self._answers, round=np.array(this), **arrays)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, record)
            if file.tell() == 0:
                writer.writeheader()
            elif list(record) != (header := list(pd.read_csv(self.path, nrows=0))):
                raise SwarmKVError(f"{self.path.name} has columns {header}, but a run now has {list(record)}: {_MEND}")
            writer.writerow(record)
            file.flush()
            os.fsync(file.fileno())
        self._done.add((this, record["strategy"]))

    def reference(self, this: Round) -> list[Branch] | None:
        """The reference's answers in an interrupted round, or None if they were not saved."""
        if not self._answers.exists():
            return None
        with np.load(self._answers) as kept:
            if tuple(kept["round"]) != this:
                return None
            return [
                Branch("", np.empty(0, np.int32), logits=kept[f"logits{i}"], tokens=kept[f"tokens{i}"].tolist())
                for i in range(this.n_agents)
            ]

    def frame(self, rounds: Sequence[Round], strategies: Sequence[str]) -> pd.DataFrame:
        """The rows of these rounds and strategies."""
        rows = self._rows()
        wanted = [this in rounds and strategy in strategies for this, strategy in _keys(rows)]
        return rows[wanted].reset_index(drop=True)

    def _rows(self) -> pd.DataFrame:
        rows = pd.read_csv(self.path) if self.path.exists() and self.path.stat().st_size else pd.DataFrame()
        if len(rows) and not {*Round._fields, "strategy"} <= set(rows):
            raise SwarmKVError(f"{self.path.name} is not a sweep's file: {_MEND}")
        return rows

    def close(self) -> None:
        """Remove the saved answers; every round is finished."""
        self._answers.unlink(missing_ok=True)


def _keys(rows: pd.DataFrame) -> list[tuple[Round, str]]:
    return [(Round(row.repeat, row.depth, row.n_agents), row.strategy) for row in rows.itertuples()]


def _require_same(path: Path, sidecar: Path, environment: dict[str, Any]) -> None:
    try:
        was = json.loads(sidecar.read_text(encoding="utf-8"))
        differences = [f"{k} {was.get(k)!r}, now {environment[k]!r}" for k in _SAME if was.get(k) != environment[k]]
    except (OSError, ValueError, AttributeError) as error:
        raise SwarmKVError(
            f"{path.name} has no readable {sidecar.name} that says how it was measured: {_MEND}"
        ) from error
    if differences:
        raise SwarmKVError(f"{path.name} was measured with {'; '.join(differences)}: {_MEND}")


def _drop_torn_line(path: Path) -> None:
    """Remove the incomplete line that a killed process may have left; that run is measured again."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
