"""Exactness: what keeps the bits of an answer's logits, and what changes the last of them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.outcome import kl_divergence
from swarmkv_lab.files import ROOT
from swarmkv_lab.llama.loading import load_model
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.progress import tqdm

# What is changed against the default: 512 tokens a batch, all cores, no flash attention, f16.
CHANGES: Mapping[str, dict[str, Any]] = {
    "1 thread": {"n_threads": 1},
    "2 threads": {"n_threads": 2},
    "n_batch 256": {"n_batch": 256},
    "n_batch 128": {"n_batch": 128},
    "n_batch 100": {"n_batch": 100},
    "flash attention": {"flash_attn": True},
    "KV in q8_0": {"kv_type": "q8_0"},
}


def what_keeps_bits(
    model: Model, tokens: np.ndarray, question: np.ndarray, libraries: Mapping[str, str | Path] = {}
) -> pd.DataFrame:
    """The logits after a document and a question, with one thing changed at a time: a row per change.

    libraries: folders with other builds of the same llama.cpp, by what is different in them; each runs in a process of
    its own. Columns: change, same_bits, max_abs_logit_diff and kl (nats) against the unchanged run, and same_token,
    whether the most likely token is the same. Raises SwarmKVError when another build does not run.
    """
    reference = logits(model, tokens, question)
    found = {"again": partial(logits, model, tokens, question)}
    found |= {name: partial(logits, model, tokens, question, **change) for name, change in CHANGES.items()}
    found |= {name: partial(_by_library, folder, model, tokens, question) for name, folder in libraries.items()}
    rows = []
    for name, run in tqdm(found.items(), unit="change", leave=False):
        row = run()
        rows.append(
            {
                "change": name,
                "same_bits": bool(np.array_equal(row, reference)),
                "max_abs_logit_diff": float(np.abs(row - reference).max()),
                "kl": kl_divergence(reference, row),
                "same_token": int(row.argmax()) == int(reference.argmax()),
            }
        )
    return pd.DataFrame(rows)


def logits(model: Model, tokens: np.ndarray, question: np.ndarray, **settings: Any) -> np.ndarray:
    """The logits after a document and a question, float32 (n_vocab,); settings as in Context."""
    chosen = ContextSettings.of(**settings).sized(len(tokens) + len(question))
    with model.open_context(chosen) as ctx:
        ctx.decode(tokens)
        ctx.decode(question)
        return ctx.logits()


def _by_library(folder: str | Path, model: Model, tokens: np.ndarray, question: np.ndarray) -> np.ndarray:
    """The same by another build of llama.cpp, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "asked.npz", Path(scratch) / "answered.npy"
        np.savez(asked, tokens=tokens, question=question)
        environment = os.environ | {"LLAMA_CPP_LIB_PATH": str(folder)}  # where llama-cpp-python looks for its libraries
        command = [sys.executable, "-m", __name__, str(model.path), str(asked), str(answered)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", cwd=ROOT)
        if done.returncode:
            raise SwarmKVError(f"the llama.cpp in {folder} did not run: {done.stderr.strip()[-400:]}")
        found: np.ndarray = np.load(answered)
        return found


def _answer(path: str, asked: str, answered: str) -> None:
    """What another process does: read what is asked from a file, and write the logits to one."""
    data = np.load(asked)
    with load_model(path, n_gpu_layers=0) as model:
        np.save(answered, logits(model, data["tokens"], data["question"]))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
