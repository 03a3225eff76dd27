"""The only room that calls llama.cpp: Model and Context, the guard that serializes them, and the sampler."""

from swarmkv_lab.llama.api import LLAMA_CPP_VERSION, STATE_VERSION, default_threads
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.generation import decode_together, generate_together
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import GREEDY, Sampler, Sampling

__all__ = [
    "GREEDY",
    "LLAMA_CPP_VERSION",
    "STATE_VERSION",
    "Context",
    "LlamaGuard",
    "Model",
    "Sampler",
    "Sampling",
    "decode_together",
    "default_threads",
    "generate_together",
]
