"""Every architecture of llama.cpp's own generator of tiny models, a row each: what this lab makes of it.

``python -m swarmkv_studies.kv_sizing.architectures`` writes data/reference/architectures.csv (after make peers, which
compiles the generator). With a folder behind it the table of its GGUFs is printed, with one GGUF that model's row.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.files import CACHE_VARIABLE, REFERENCE, replacing
from swarmkv_lab.llama.api import LLAMA_CPP_VERSION
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.sizing.catalogue import snapshot_bytes
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_studies.common.provenance import processor
from swarmkv_studies.peers.build import program

GENERATOR = "test-llama-archs"
EXACT = ("swarmkv", "pooled", "shared")
COLUMNS = ["model", "architecture", "kind", "window", "bytes", "predicted_bytes", "one_by_one", "swarmkv", "pooled",
           "shared", "batched", "other_answers", "without_swa_full", "saved", "cached", "refused",
           "crashed"]  # fmt: skip
DOCUMENT, QUESTIONS, ANSWER, BATCH = 200, (5, 12, 20), 3, 64  # tokens; the generator's models were "trained" for 256
_TIMEOUT_S = 600


def architectures(paths: Iterable[Path]) -> pd.DataFrame:
    """A row per GGUF, with COLUMNS (data/README.md says what they mean). Each has a process of its own.

    A process that dies, or takes ten minutes, is a row too, with what it had found out before.
    """
    bar = tqdm(sorted(paths), desc="architectures", unit="model")
    rows = [{"model": path.stem, **_in_a_process(path)} for path in bar]
    whole = dict.fromkeys(["window", "bytes", "predicted_bytes"], "Int64")
    return pd.DataFrame(rows, columns=COLUMNS).astype(whole)


def generate(folder: Path) -> list[Path]:
    """llama.cpp's own tiny models with random weights, in a folder. Raises SwarmKVError where it has no generator."""
    command = [str(program(GENERATOR)), "-s", "1", "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SwarmKVError(f"{GENERATOR} failed: {done.stderr.strip()[-800:]}")
    return sorted(folder.glob("*.gguf"))


def _in_a_process(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        settings = {"GGML_NO_BACKTRACE": "1", CACHE_VARIABLE: cache}
        command = [sys.executable, "-m", "swarmkv_studies.kv_sizing.architectures", str(path)]
        pipe = subprocess.PIPE
        how: dict[str, Any] = {"env": os.environ | settings, "stdout": pipe, "stderr": pipe, "text": True}
        with subprocess.Popen(command, errors="replace", **how) as child:
            try:
                out, err = child.communicate(timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = child.communicate()[0], f"it took more than {_TIMEOUT_S} s"
    for line in out.splitlines():
        row |= json.loads(line)
    if child.returncode:
        words = next((line for line in err.splitlines() if "GGML_ASSERT" in line), err.strip().rpartition("\n")[2])
        row["crashed"] = f"status {child.returncode}: {re.sub(r'^.*/', '', words)[-300:]}"
    return row


def facts(path: Path) -> Iterator[dict[str, Any]]:
    """What there is to say of one GGUF, part by part, so that a crash loses only what comes after it."""
    try:
        model = load_model(path, n_gpu_layers=0)
    except SwarmKVError as error:
        yield {"refused": _line(error, path)}
        return
    with model:
        yield {"architecture": model.architecture}
        trial, reasons = _Trial(model), defaultdict[str, list[str]](list)
        for name, part in trial.parts().items():
            try:
                yield part()
            except SwarmKVError as error:
                reasons[_line(error, path)].append(name)
                yield {"refused": "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())}


class _Trial:
    """One model, a random document and agents."""

    def __init__(self, model: Model) -> None:
        draw = np.random.default_rng(0).integers
        self.model = model
        self.document = draw(0, model.n_vocab, DOCUMENT, np.int32)
        self.agents = {str(n): draw(0, model.n_vocab, n, np.int32) for n in QUESTIONS}
        self.other_answers: list[str] = []

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What is tried, by the names of the table's columns."""
        strategies = {name: partial(self.strategy, name) for name in STRATEGIES if name != BASELINE}
        before = {"kind": self.kind, "predicted_bytes": self.predicted_bytes, "one_by_one": self.one_by_one}
        after = {"without_swa_full": self.without_swa_full, "saved": self.saved, "cached": self.cached}
        return {**before, **strategies, **after}

    def kind(self) -> dict[str, Any]:
        kind = self.model.kind
        half, whole = (self.snapshot(n).nbytes for n in (DOCUMENT // 2, DOCUMENT))
        mixed = "recurrent" if half == whole else "hybrid"
        name = mixed if kind.recurrent else "windowed" if kind.window else "several axes" if kind.has_axes else "plain"
        return {"kind": name, "window": kind.window, "bytes": whole}

    def predicted_bytes(self) -> dict[str, Any]:
        return {"predicted_bytes": snapshot_bytes(self.model.path, DOCUMENT)}

    def one_by_one(self) -> dict[str, Any]:
        """Whether llama.cpp gives the last token's logits: those of a decode of several are those of it alone."""
        differences = []
        for branch in self.naive.branches:
            with self.model.context(DOCUMENT + len(branch.prompt), swa_full=True, n_threads=1) as ctx:
                ctx.decode(self.document)
                for token in branch.prompt:
                    ctx.decode([token])
                differences.append(np.abs(ctx.logits() - branch.logits).max())
        return {"one_by_one": max(differences)}

    def strategy(self, name: str) -> dict[str, Any]:
        exactness = self.run(name).compare(self.naive)
        if not exactness.same_tokens.all():
            self.other_answers.append(name)
        return {name: exactness.max_abs_logit_diff.max(), "other_answers": ", ".join(self.other_answers)}

    def without_swa_full(self) -> dict[str, Any]:
        if not self.model.kind.window:
            return {}
        naive = self.run(BASELINE, swa_full=False)
        runs = [self.run(name, swa_full=False).compare(naive) for name in EXACT]
        return {"without_swa_full": max(run.max_abs_logit_diff.max() for run in runs)}

    def saved(self) -> dict[str, Any]:
        snapshot = self.snapshot(DOCUMENT, swa_full=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "saved.kv.safetensors"
            snapshot.save(path)
            loaded = KVSnapshot.load(path, self.model)
            exactness = self.run("pooled", loaded).compare(self.naive)
        return {"saved": bool(exactness.same_tokens.all() and exactness.max_abs_logit_diff.max() == 0)}

    def cached(self) -> dict[str, Any]:
        how: dict[str, Any] = {"n_batch": BATCH, "swa_full": True}
        fresh = self.snapshot(DOCUMENT, **how)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.snapshot(2 * BATCH, cache=True, **how)
            again = [self.snapshot(DOCUMENT, cache=True, **how) for _ in range(2)]  # after the shorter one, then whole
        if said:
            raise SwarmKVError(str(said[0].message))
        return {"cached": all(np.array_equal(one.data, fresh.data) for one in again)}

    @cached_property
    def naive(self) -> Run:
        return self.run(BASELINE)

    def run(self, name: str, document: KVSnapshot | None = None, *, swa_full: bool = True) -> Run:
        how: dict[str, Any] = {"max_tokens": ANSWER, "swa_full": swa_full, "n_threads": 1}
        return fan_out(self.model, document or self.document, self.agents, name, **how)

    def snapshot(self, n: int, **how: Any) -> KVSnapshot:
        return prefill(self.model, self.document[:n], progress=False, n_threads=1, **how)


def _line(error: SwarmKVError, path: Path) -> str:
    return " ".join(str(error).replace(str(path), path.name).split())


def main(arguments: list[str]) -> None:
    """As the command line says."""
    asked = Path(arguments[0]) if arguments else None
    if asked is not None and asked.is_file():
        for some in facts(asked):
            print(json.dumps(some, default=np.generic.item), flush=True)
    elif asked is not None:
        print(architectures(asked.glob("*.gguf")).to_csv(index=False), end="")
    else:
        with tempfile.TemporaryDirectory() as folder:
            table = architectures(generate(Path(folder)))
        where = f"{processor()}, llama.cpp of llama-cpp-python {LLAMA_CPP_VERSION}"
        with replacing(REFERENCE / "architectures.csv") as file:
            file.write(table.assign(machine=where).to_csv(index=False).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
