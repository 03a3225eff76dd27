"""Measurements: the saved measurements of one machine, for figures, notebooks and explorers."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.files import DATA
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.common.summary import summarize


def table(path: Path) -> pd.DataFrame:
    """A CSV file of measurements, but for the column that says on which machine: captions say it."""
    return pd.read_csv(path).drop(columns="machine", errors="ignore")


def _report(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text(encoding="utf-8"))
    return report | {"summary": summarize(report["runs"])}


def _environments(path: Path) -> list[dict[str, Any]]:
    """Where and how something was measured: of each model, on one machine."""
    found = json.loads(path.read_text(encoding="utf-8"))
    found = found.get("environment", found)
    return [found] if "processor" in found else list(found.values())


# What is not the table in NAME.csv: the file, and what makes an attribute of it.
_READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bench": ("bench.json", _report),  # its summary is made of its runs
    "peers": ("peers_1024.csv", table),
    "study": ("study.csv", read_study),
    "composed": ("composed.csv", read_study),
}


class Measurements:
    """The files of one folder (data/README.md), each an attribute by its name, read on first use.

    ``ship`` is the table in ship.csv, and so on; ``ship_caption``, what ship.json says for a figure's caption;
    ``bench``, a report as of common.bench. SwarmKVError for a missing file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        stem = name.removesuffix("_caption")
        file, read = _READ.get(stem, (f"{stem}.csv", table))
        if stem != name:
            *others, last = _environments(self._path(Path(file).with_suffix(".json").name))
            return ", ".join([*(env["model"] for env in others), caption(last)])
        found = self.__dict__[name] = read(self._path(file))
        return found

    @cached_property
    def bench_runs(self) -> pd.DataFrame:
        """The bench's runs, a row per run."""
        return pd.DataFrame(self.bench["runs"]).drop(columns="agents")

    @cached_property
    def grid(self) -> pd.DataFrame:
        """The grid's runs, and the bench's if the grid leaves out its depth with its agents; a row per run."""
        grid, bench = table(self._path("grid.csv")), self.bench_runs
        points = [pd.MultiIndex.from_frame(runs[["depth", "n_agents"]]) for runs in (grid, bench)]
        return pd.concat([grid, bench[~points[1].isin(points[0])]], ignore_index=True)

    @property
    def races(self) -> pd.DataFrame:
        """Who was first, loading or computing: columns depth, bytes_per_s, winner; a row per bandwidth and repeat."""
        winner = np.where(self.ship.load_ms < self.ship.compute_ms, "ship", "recompute")
        return pd.DataFrame({"depth": self.ship.depth, "bytes_per_s": self.ship.bandwidth, "winner": winner})

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of the default model, where computing was raced against loading."""
        return float(1e3 * (self.ship.depth / self.ship.compute_ms).median())

    @cached_property
    def timelines(self) -> dict[str, pd.DataFrame]:
        """The bench's timelines by strategy, a row per span."""
        spans = table(self._path("timelines.csv"))
        return {name: rows.drop(columns="strategy") for name, rows in spans.groupby("strategy", sort=False)}

    @cached_property
    def pipeline_timelines(self) -> dict[str, pd.DataFrame]:
        """The pipeline's timelines by variant, from the round in which naive took its median time."""
        spans = table(self._path("pipeline_timelines.csv"))
        naive = self.pipeline[self.pipeline.variant == BASELINE].groupby("repeat").end_to_end_ms.first().sort_values()
        median = spans[spans.repeat == naive.index[(len(naive) - 1) // 2]]
        return {name: rows.drop(columns=["repeat", "variant"]) for name, rows in median.groupby("variant", sort=False)}

    def environment(self, name: str) -> dict[str, Any]:
        """Where and how something was measured; name: of one of the JSON files. Of several models, the last one's."""
        return _environments(self._path(name))[-1]

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise SwarmKVError(f"there is no {name} in {self.folder.name}: run make reproduce, or use the reference")
        return path


def measurements(name: str = "reference") -> Measurements:
    """The maintainers' measurements: "reference", or a folder of data/gpu, such as "gpu/qwen2.5-7b".

    Raises SwarmKVError for another name.
    """
    folder = DATA / name
    if name != "reference" and not (name.startswith("gpu/") and folder.is_dir()):
        raise SwarmKVError(f"measurements are 'reference' or 'gpu/' and a model, not {name!r}")
    return Measurements(folder)


def caption(env: dict[str, Any]) -> str:
    """The text under a figure: model, machine, llama.cpp version, date, and what all of it was measured with.

    env: of common.provenance.
    """
    counts = {name: env["settings"].get(key) for key, name in (("depth", "tokens"), ("n_agents", "agents"))}
    said = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n)
    return f"{env['model']}, {where(env)}, {env['llama_cpp']}, {env['time'][:10]}\n{said}".rstrip()


def where(env: dict[str, Any]) -> str:
    """The GPU's name, or the processor's with the threads that were used. env: of common.provenance."""
    return env.get("gpu") or f"{env['processor']}, {env['n_threads']} threads"


def machine(env: dict[str, Any]) -> str:
    """The machine in a few words, such as "AMD EPYC family 26, 2 cores". env: of common.provenance."""
    return f"{env['processor'].replace('(R)', '').replace(' Processor', '')}, {env['cores']} cores"
