"""Measurements that are kept: a file is measured once and written whole, so that an interrupted call can go on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.fan_out import Prompts
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.files import as_json, replacing
from swarmkv_lab.llama.model import Model
from swarmkv_studies.common.bench import bench


def once(path: Path, measured: Callable[[], pd.DataFrame | dict[str, Any]]) -> None:
    """Measure and write a file, unless it is there."""
    if path.exists():
        print(f"keeping {path.parent.name}/{path.name}; remove it to measure it again", file=sys.stderr)
        return
    what = measured()
    text = what.to_csv(index=False) if isinstance(what, pd.DataFrame) else as_json(what, indent=1) + "\n"
    with replacing(path) as file:  # half a file would be kept the next time
        file.write(text.encode())


def stamp(path: Path, machine: str) -> None:
    """Write the machine into each row of a CSV file, in a last column, unless it is there. No other text changes."""
    if not is_stamped(path):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False).assign(machine=machine)
        with replacing(path) as file:
            file.write(frame.to_csv(index=False).encode())


def is_stamped(path: Path) -> bool:
    """Whether a file is whole: a CSV file is, once it says its machine. Others are written in one piece."""
    return path.exists() and (path.suffix != ".csv" or "machine" in pd.read_csv(path, nrows=0))


def kept_bench(
    folder: Path,
    model: Model,
    tokens: np.ndarray,
    *,
    depth: int,
    repeats: int,
    max_tokens: int,
    agents: Prompts | None = None,
) -> None:
    """The article's experiment, two agents: bench.csv, timelines.csv and, as a sign of the end, bench.json.

    The JSON has no summary, as that is made of the runs (Measurements.bench).
    """

    def measured() -> dict[str, Any]:
        how: dict[str, Any] = {"depth": depth, "repeats": repeats, "max_tokens": max_tokens, "agents": agents}
        report, runs = bench(model, tokens, n_agents=2, strategies=list(STRATEGIES), **how)
        turns = [runs[i : i + len(STRATEGIES)] for i in range(0, len(runs), len(STRATEGIES))]
        turns.sort(key=lambda turn: turn[0].metrics["end_to_end_ms"])
        median = [run.timeline.assign(strategy=run.strategy) for run in turns[(len(turns) - 1) // 2]]
        pd.concat(median).to_csv(folder / "timelines.csv", index=False)
        pd.DataFrame(report["runs"]).drop(columns="agents").to_csv(folder / "bench.csv", index=False)
        if report["restore"] is None:  # bench was interrupted: it returns what it has measured
            raise KeyboardInterrupt
        return {name: part for name, part in report.items() if name != "summary"}

    once(folder / "bench.json", measured)
