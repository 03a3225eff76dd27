"""Every architecture of llama.cpp's own generator of tiny models, a row each: what this lab makes of it.

``python -m swarmkv_studies.kv_sizing.architectures`` writes data/reference/architectures.csv (after make peers, which
compiles the generator). With a GGUF behind it that model's row is printed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.files import CACHE_VARIABLE, REFERENCE
from swarmkv_lab.llama.api import LLAMA_CPP_VERSION
from swarmkv_studies.common.provenance import keep, processor
from swarmkv_studies.peers.build import program

GENERATOR = "test-llama-archs"
COLUMNS = ["model", "architecture", "kind", "bytes", "predicted_bytes", "swarmkv", "pooled", "shared", "batched",
           "refused", "crashed"]  # fmt: skip
DOCUMENT, QUESTIONS, ANSWER = 200, (5, 12, 20), 3  # tokens; the generator's models were "trained" for 256
_TIMEOUT_S = 600


def architectures(paths: Iterable[Path]) -> pd.DataFrame:
    """A row per GGUF, with COLUMNS (data/README.md says what they mean). Each has a process of its own.

    A process that dies, or takes ten minutes, is a row too, with what it had found out before.
    """
    bar = tqdm(sorted(paths), desc="architectures", unit="model", disable=None)
    rows = [{"model": path.stem, **_in_a_process(path)} for path in bar]
    whole = dict.fromkeys(["bytes", "predicted_bytes"], "Int64")
    return pd.DataFrame(rows, columns=COLUMNS).astype(whole)


def generate(folder: Path) -> list[Path]:
    """llama.cpp's own tiny models with random weights, in a folder. Raises SwarmKVError where it has no generator."""
    command = [str(program(GENERATOR)), "-s", "1", "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise lab.SwarmKVError(f"{GENERATOR} failed: {done.stderr.strip()[-800:]}")
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
        model = lab.load_model(path, n_gpu_layers=0)
    except lab.SwarmKVError as error:
        yield {"refused": _line(error, path)}
        return
    with model:
        yield {"architecture": model.architecture}
        draw = np.random.default_rng(0).integers
        document = draw(0, model.n_vocab, DOCUMENT, np.int32)
        agents = {str(n): draw(0, model.n_vocab, n, np.int32) for n in QUESTIONS}
        run = cache(partial(lab.fan_out, model, document, agents, max_tokens=ANSWER, swa_full=True, n_threads=1))
        parts: dict[str, Callable[[], Any]] = {
            "kind": lambda: _kind(model, document),
            "bytes": lambda: lab.prefill(model, document, progress=False).nbytes,
            "predicted_bytes": lambda: lab.snapshot_bytes(model.path, DOCUMENT),
            **{name: partial(_difference, run, name) for name in lab.STRATEGIES if name != BASELINE},
        }
        reasons = defaultdict[str, list[str]](list)
        for name, part in parts.items():
            try:
                yield {name: part()}
            except lab.SwarmKVError as error:
                reasons[_line(error, path)].append(name)
                yield {"refused": "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())}


def _kind(model: lab.Model, document: np.ndarray) -> str:
    if model.kind.recurrent:
        half, whole = (lab.prefill(model, document[:n], progress=False).nbytes for n in (DOCUMENT // 2, DOCUMENT))
        return "recurrent" if half == whole else "hybrid"
    return "windowed" if model.kind.window else "several axes" if model.kind.has_axes else "plain"


def _difference(run: Callable[[str], Run], name: str) -> float:
    """The largest difference of a strategy's first logits to naive's."""
    return run(name).compare(run(BASELINE)).max_abs_logit_diff.max()


def _line(error: lab.SwarmKVError, path: Path) -> str:
    return " ".join(str(error).replace(str(path), path.name).split())


def main(arguments: list[str]) -> None:
    """As the command line says."""
    if arguments:
        for some in facts(Path(arguments[0])):
            print(json.dumps(some, default=np.generic.item), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        table = architectures(generate(Path(folder)))
    where = f"{processor()}, llama.cpp of llama-cpp-python {LLAMA_CPP_VERSION}"
    keep(REFERENCE / "architectures.csv", table.assign(machine=where))


if __name__ == "__main__":
    main(sys.argv[1:])
