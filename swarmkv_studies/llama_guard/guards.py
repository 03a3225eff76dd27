"""LlamaGuard, demonstrated: agents in threads, with and without a lock around llama.cpp."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from itertools import chain, count, cycle, product, repeat
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.errors import whole_number
from swarmkv_lab.llama.api import default_threads
from swarmkv_lab.llama.sampling import GREEDY, generate_together

Answer = tuple[list[int], float]  # the tokens, and when the last one was there
_DOCUMENT = 0
_LONGEST_S = 20
_ANSWER = 12  # tokens, of an agent without a guard
OUTCOMES = ("crashed", "hung", "wrong answers", "right by luck")


def compare_guards(
    model: lab.Model, tokens: np.ndarray, prompts: Sequence[np.ndarray], *, max_tokens: int = 16, repeats: int = 3
) -> pd.DataFrame:
    """Let agents answer over one prefix in each of the variants, in turns: a row per variant and repeat.

    latency_ms: from the common start to an agent's whole answer, mean. tokens_per_s: of all agents together.
    same_tokens: whether the answers equal the first variant's.

    Contexts are created and the prefix is restored before the clock starts. Each variant has the same number of cores,
    shared among the contexts that decode at the same time. Raises SwarmKVError for a model on a GPU.
    """
    if model.on_gpu:
        raise lab.SwarmKVError(
            "contexts on one GPU share its queue: load the model with n_gpu_layers=0 to compare guards"
        )
    rows = []
    with ExitStack() as open_contexts:

        def context(n_threads: int) -> lab.Context:
            n_ctx = len(tokens) + sum(len(prompt) + max_tokens for prompt in prompts)
            settings = {"n_ctx": n_ctx, "n_seq_max": 1 << len(prompts).bit_length(), "n_threads": n_threads}
            return open_contexts.enter_context(model.context(**settings))

        cores = default_threads()
        whole = context(cores)
        whole.decode(tokens, _DOCUMENT)
        snapshot = lab.KVSnapshot.capture(whole, tokens)
        share = max(1, cores // len(prompts))
        many = {n: [context(n) for _ in prompts] for n in (cores, share)}
        for ctx in chain(*many.values()):
            snapshot.restore(ctx)
        contexts = {1: [whole], 2: many[cores], 3: many[share]}
        expected = None
        todo = list(product(range(-1, repeats), VARIANTS))
        for turn, variant in tqdm(todo, desc="guards", leave=False, disable=None):
            which, how = VARIANTS[variant]
            start = time.perf_counter()
            answers, ends = zip(*how(contexts[which], prompts, max_tokens), strict=True)
            seconds = np.array(ends) - start
            expected = expected or answers
            if turn < 0:  # a warm-up
                continue
            n = sum(map(len, answers))
            rows.append((turn, variant, 1e3 * seconds.mean(), n / seconds.max(), answers == expected))
    columns = ["repeat", "variant", "latency_ms", "tokens_per_s", "same_tokens"]
    return pd.DataFrame(rows, columns=columns)


def trials_without_guard(
    model: lab.Model, tokens: np.ndarray, prompts: Sequence[np.ndarray], *, trials: int = 5, rounds: int = 1
) -> pd.DataFrame:
    """What happens without a lock, trial by trial: ``outcome``, one of OUTCOMES, and ``how`` it ended.

    Each trial is a process of its own, as it usually crashes, whose agents answer ``rounds`` times.
    """
    asked = json.dumps([str(model.path), rounds, *(np.asarray(ids).tolist() for ids in (tokens, *prompts))])
    found = [_trial(asked) for _ in range(whole_number("trials", trials, 1))]
    return pd.DataFrame(found, columns=["outcome", "how"], index=pd.RangeIndex(1, trials + 1, name="trial"))


def _trial(asked: str) -> tuple[str, str]:
    """This module as a program that decodes without a guard: what came of it, and how it ended."""
    command = [sys.executable, "-m", "swarmkv_studies.llama_guard.guards"]
    # Otherwise a thread that fails an assertion starts a debugger, and two debuggers wait for each other forever.
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    how: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "env": environment}
    try:
        done = subprocess.run(command, input=asked, timeout=_LONGEST_S, **how)
    except subprocess.TimeoutExpired:
        return "hung", f"ended after {_LONGEST_S} s"
    if done.returncode == 0:
        return done.stdout.strip().rpartition("\n")[2], "by itself"
    code = done.returncode
    return "crashed", f"status {code}" if code > 0 else signal.Signals(-code).name


def _in_turns(contexts: Sequence[lab.Context], prompts: Sequence[np.ndarray], max_tokens: int) -> list[Answer]:
    (ctx,) = contexts
    return [_answer(ctx, seq_id, prompt, max_tokens) for seq_id, prompt in enumerate(prompts, 1)]


def _together(contexts: Sequence[lab.Context], prompts: Sequence[np.ndarray], max_tokens: int) -> list[Answer]:
    (ctx,) = contexts
    branches = dict(enumerate(prompts, 1))
    answers: dict[int, list[int]] = {seq_id: [] for seq_id in branches}
    for seq_id in branches:
        ctx.share(_DOCUMENT, seq_id)
    ctx.decode_many(branches)
    for step in generate_together(ctx, dict.fromkeys(branches, (max_tokens, GREEDY))):
        for seq_id, token in step.items():
            answers[seq_id].append(token)
    end = time.perf_counter()
    for seq_id in branches:
        ctx.clear(seq_id)
    return [(answer, end) for answer in answers.values()]


def _in_threads(contexts: Sequence[lab.Context], prompts: Sequence[np.ndarray], max_tokens: int) -> list[Answer]:
    """A thread per agent: all in one context, or one context per agent."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(_answer, cycle(contexts), count(1), prompts, repeat(max_tokens)))


def _guarded_each(contexts: Sequence[lab.Context], prompts: Sequence[np.ndarray], max_tokens: int) -> list[Answer]:
    shared = [ctx.guard for ctx in contexts]
    for ctx in contexts:
        ctx.guard = lab.LlamaGuard()
    try:
        return _in_threads(contexts, prompts, max_tokens)
    finally:
        for ctx, guard in zip(contexts, shared, strict=True):
            ctx.guard = guard


def _answer(ctx: lab.Context, seq_id: int, prompt: np.ndarray, max_tokens: int) -> Answer:
    ctx.share(_DOCUMENT, seq_id)
    ctx.decode(prompt, seq_id)
    answer = list(ctx.stream(max_tokens, seq_id=seq_id)), time.perf_counter()
    ctx.clear(seq_id)  # leftover cells would change the shape of the next attention, and so its rounding
    return answer


# which contexts: 1 one for all agents; 2 one per agent, each with all cores; 3 one per agent, with a share of the cores
VARIANTS: dict[str, tuple[int, Callable[[Sequence[lab.Context], Sequence[np.ndarray], int], list[Answer]]]] = {
    "in turns": (1, _in_turns),
    "threads, one context": (1, _in_threads),
    "threads, own contexts, one guard": (2, _in_threads),
    "threads, own contexts and guards": (3, _guarded_each),
    "one batch": (1, _together),
}


class _NoGuard(nullcontext[None]):
    """In the place of a guard: it lets everybody in."""

    held = False


def _unguarded(model: lab.Model, tokens: np.ndarray, prompts: Sequence[np.ndarray], rounds: int) -> str:
    """The outcome for agents in threads, if the process lives to tell it."""
    n_ctx = len(tokens) + sum(map(len, prompts)) + _ANSWER * len(prompts)
    ctx = model.context(n_ctx, n_seq_max=1 + len(prompts))
    ctx.decode(tokens, _DOCUMENT)
    expected = [tokens for tokens, _ in _in_turns([ctx], prompts, _ANSWER)]
    ctx.guard = ctx._inside = _NoGuard()  # type: ignore[assignment]
    for _ in range(rounds):
        if [tokens for tokens, _ in _in_threads([ctx], prompts, _ANSWER)] != expected:
            return "wrong answers"
    return "right by luck"


if __name__ == "__main__":
    path, rounds, *asked = json.load(sys.stdin)
    document, *questions = (np.array(ids, np.int32) for ids in asked)
    with lab.Model(path, n_gpu_layers=0) as loaded:
        print(_unguarded(loaded, document, questions, rounds))
