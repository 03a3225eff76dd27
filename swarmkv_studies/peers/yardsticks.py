"""Yardsticks: llama.cpp's own benchmarks in C++, and the same work done from Python."""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.watermarks import DOCUMENT
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampler
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.progress import tqdm
from swarmkv_lab.sizing.geometry import UBATCH
from swarmkv_studies.common.summary import OURS
from swarmkv_studies.peers.build import program


def yardsticks(
    model: Model,
    tokens: np.ndarray,
    n_agents: Sequence[int] = (1, 4, 8, 16),
    *,
    n_tokens: int = 16,
    repeats: int = 3,
    **settings: Any,
) -> pd.DataFrame:
    """Tokens per second of the prefill and of batched generation after it, ours and llama.cpp's, in turns.

    Columns work ("prefill" or "generation"), n_agents, program, repeat, tokens_per_s. Every program has the same depth,
    threads, batch sizes, KV type and flash attention. All agents share the document's cells, and each generates
    n_tokens in the same batches. We sample each token from its logits; llama-batched-bench takes random tokens. Raises
    SwarmKVError if the programs are not built (make peers).
    """
    most = max(n_agents)
    n_ctx = len(tokens) + most * (n_tokens + 1)
    plan = ContextSettings(n_ctx, n_seq_max=1 << most.bit_length(), **settings)
    plan = replace(plan, flash_attn=plan.uses_flash_attn(model.on_gpu))
    rows = []
    with model.open_context(plan) as ctx:
        for repeat in tqdm(range(repeats + 1), desc="yardsticks", unit="round"):  # the first one is a warm-up
            ctx.clear()
            start = time.perf_counter()
            ctx.decode(tokens, DOCUMENT)
            rows.append(("prefill", 1, OURS, repeat, len(tokens) / (time.perf_counter() - start)))
            rows.append(("prefill", 1, "llama-bench", repeat, _llama_bench(model, plan, len(tokens))))
            for n in n_agents:
                rows.append(("generation", n, OURS, repeat, _generation(ctx, n, n_tokens)))
                rate = _batched_bench(model, plan, len(tokens), n, n_tokens)
                rows.append(("generation", n, "llama-batched-bench", repeat, rate))
    frame = pd.DataFrame(rows, columns=["work", "n_agents", "program", "repeat", "tokens_per_s"])
    return frame[frame.repeat > 0].reset_index(drop=True)


def _generation(ctx: Context, n_agents: int, n_tokens: int) -> float:
    sampler = Sampler()
    agents = range(DOCUMENT + 1, DOCUMENT + 1 + n_agents)
    for seq_id in agents:
        ctx.share(DOCUMENT, seq_id)
    step = {seq_id: [sampler.sample(ctx.pop_logits(seq_id))] for seq_id in agents}
    start = time.perf_counter()
    for _ in range(n_tokens):
        ctx.decode_many(step)
        step = {seq_id: [sampler.sample(ctx.pop_logits(seq_id))] for seq_id in agents}
    rate = n_agents * n_tokens / (time.perf_counter() - start)
    for seq_id in agents:
        ctx.clear(seq_id)
    return rate


def _batched_bench(model: Model, plan: ContextSettings, depth: int, n_agents: int, n_tokens: int) -> float:
    flash_attn = "on" if plan.uses_flash_attn(model.on_gpu) else "off"
    asked: dict[str, Any] = {"-npp": depth, "-ntg": n_tokens, "-npl": n_agents, "--output-format": "jsonl"}
    asked |= {"-c": plan.cells, "-tb": plan.threads_batch, "-fa": flash_attn}
    answer = _ask("llama-batched-bench", model, plan, asked, "-pps -kvu")
    (line,) = (line for line in answer.splitlines() if line.startswith("{"))
    return json.loads(line)["speed_tg"]


def _llama_bench(model: Model, plan: ContextSettings, depth: int) -> float:
    flash_attn = int(plan.uses_flash_attn(model.on_gpu))
    asked = {"-p": depth, "-n": 0, "-r": 1, "-fa": flash_attn, "-t": plan.threads_batch, "-o": "json"}
    return json.loads(_ask("llama-bench", model, plan, asked, "--no-warmup"))[0]["avg_ts"]


def _ask(name: str, model: Model, plan: ContextSettings, options: dict[str, Any], flags: str = "") -> str:
    """What one of the programs prints. Raises SwarmKVError if it fails."""
    key_type, value_type = plan.kv_pair
    common = {"-m": model.path, "-t": plan.threads, "-b": plan.n_batch, "-ub": min(plan.n_batch, UBATCH)}
    common |= {"-ctk": key_type, "-ctv": value_type, "-ngl": 99 if model.on_gpu else 0}
    command = [program(name), *(part for option in (common | options).items() for part in option), *flags.split()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SwarmKVError(f"{name} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
