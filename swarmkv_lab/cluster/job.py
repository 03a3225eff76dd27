"""What coordinator and workers tell each other: small things only, never a snapshot."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import Span
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.settings import ContextSettings

ANY = "any"
"""in a Standing, for what does not matter"""


class Standing(NamedTuple):
    """What decides a worker's bits: all of it must agree in one run."""

    model: str
    """Model.content_hash"""
    llama_cpp: str
    """llama-cpp-python's and llama.cpp's versions"""
    instructions: str
    """the instruction set and devices that it was compiled for, or ANY"""
    machine: str
    """the processor and the threads, where times are compared; else ANY"""

    def differences(self, other: "Standing") -> str:
        """What another one has instead, both sides, in words; empty where nothing differs."""
        pairs = zip(("model", "llama.cpp", "instructions", "machine"), self, other, strict=True)
        return "; ".join(f"{what} {its[-60:]}, and the run {mine[-60:]}" for what, mine, its in pairs if mine != its)


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself before it is given anything to do."""

    standing: Standing
    process: str
    """the host's name and the process's number"""
    n_threads: int


@dataclass(frozen=True)
class Job:
    """What a run asks of every worker."""

    source: str | None
    """the model, as load_model takes it, on the worker's machine"""
    n_gpu_layers: int
    standing: Standing
    tokens: np.ndarray
    strategy: str
    settings: ContextSettings
    """n_threads None: the worker's share of its machine's cores"""
    store: str | None
    """a folder that all workers reach; None: each machine's own folder, and one worker asks another"""
    tells: bool = True
    """whether somebody wants to hear of tokens as they come"""
    prompts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """each agent's tokens, once a worker has read them"""


@dataclass(frozen=True)
class Held:
    """Where a snapshot is."""

    name: str
    """of its file: all that it depends on"""
    n_tokens: int
    nbytes: int
    workers: tuple[str, ...]
    """addresses of those that had it when this was written"""


@dataclass(frozen=True)
class Done:
    """What a task brings back. Times are ms since ``started``, a moment of the worker's own clock."""

    worker: str
    process: str
    started: float
    """s, as time.time() gives it on the worker"""
    spans: list[Span]
    kv_bytes: int
    model_loads: int
    """by the worker's process since it began"""
    branches: Sequence[Branch] = ()
    texts: dict[str, str] = field(default_factory=dict)
    held: Held | None = None
    warnings: tuple[str, ...] = ()

    def moved(self, to_ms: float, worker: str) -> list[Span]:
        """The spans, so many ms later, as a worker's of this name."""
        return [
            span._replace(start_ms=span.start_ms + to_ms, end_ms=span.end_ms + to_ms, worker=worker)
            for span in self.spans
        ]


def most_common(hellos: Iterable[Hello]) -> Standing:
    """The standing that most workers have. Raises SwarmKVError where there is none."""
    counted = Counter(hello.standing for hello in hellos)
    if not counted:
        raise SwarmKVError("no worker has answered: start some, and look at their logs")
    return counted.most_common(1)[0][0]
