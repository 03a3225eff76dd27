"""Hugging Face transformers on the CPU: the same weights, dequantized; one copy of the prefix's cache per agent."""

import copy
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

import swarmkv_lab as lab
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.peers.llama_cpp_python import answer_until_end

HUGGING_FACE_PEER = "transformers"


def require() -> None:
    """Raise SwarmKVError if torch or transformers is not installed."""
    if not (find_spec("torch") and find_spec("transformers")):
        raise lab.SwarmKVError(
            f"the peer {HUGGING_FACE_PEER} needs torch and transformers: pip install 'swarmkv-lab[peers]' (on a "
            "machine without a GPU, install the CPU build of torch first: it is smaller)"
        )


@contextmanager
def hugging_face(model: lab.Model, settings: ContextSettings) -> Iterator[Strategy]:
    """The peer ``transformers``: one prefill, then a deepcopy of the prefix's DynamicCache for each agent."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.utils import logging

    before = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(settings.threads_batch)
    logging.set_verbosity_error()  # its warnings are about quantized weights, and these are dequantized
    file = {"pretrained_model_name_or_path": str(model.path.parent), "gguf_file": model.path.name}
    llm = AutoModelForCausalLM.from_pretrained(**file, dtype=_faster_dtype(), local_files_only=True).eval()

    def decode(cache: Any, tokens: np.ndarray) -> np.ndarray:
        for start in range(0, len(tokens), settings.n_batch):
            ids = torch.from_numpy(tokens[start : start + settings.n_batch].astype(np.int64))[None]
            logits = llm(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].float().numpy()

    def following(cache: Any, token: int) -> Iterator[int]:
        while True:
            yield token
            token = int(decode(cache, np.array([token])).argmax())

    @torch.inference_mode()
    def peer(run: Run) -> None:
        prefix = DynamicCache(config=llm.config)
        with run.phase(None, "prefill"):
            decode(prefix, run.tokens)
        with run.holding(_nbytes(prefix)):
            for agent in run.branches:
                with run.phase(agent, "copy", _nbytes(prefix)):
                    cache = copy.deepcopy(prefix)
                with run.phase(agent, "branch"):
                    agent.logits = decode(cache, agent.prompt)
                    token = int(agent.logits.argmax())
                with run.phase(agent, "generate"):
                    answer_until_end(run, agent, following(cache, token))
                with run.holding(_nbytes(cache)):  # its size after the whole answer
                    del cache

    try:
        yield Strategy(HUGGING_FACE_PEER, peer)
    finally:
        torch.set_num_threads(before[0])
        logging.set_verbosity(before[1])


def _nbytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _faster_dtype() -> Any:
    """bfloat16 if a short measurement shows that it multiplies faster than float32 here, else float32."""
    import torch

    def seconds(dtype: Any) -> float:
        a, b = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        return min(timeit.repeat(lambda: a @ b, number=3, repeat=5))

    return min((torch.float32, torch.bfloat16), key=seconds)
