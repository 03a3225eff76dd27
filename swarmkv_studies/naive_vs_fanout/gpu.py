"""The article's experiment on this machine's GPU: the default model, and full-size twins of others.

``timeout -s INT 300 python -m swarmkv_studies.naive_vs_fanout.gpu`` writes data/gpu, or goes on with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.fan_out import named_prompts
from swarmkv_lab.files import DATA
from swarmkv_lab.llama.api import gpus
from swarmkv_studies.common.bench import kept_bench
from swarmkv_studies.common.rounds import Round, plan, rounds
from swarmkv_studies.common.sweep import sweep_rounds

DEFAULT = "default"
SUBJECTS = (DEFAULT, "qwen2.5-0.5b", "qwen2.5-7b")
GRID = (*rounds([256, 1024, 3501], [1, 4, 16], 2), *rounds([16_384], [1, 4], 1))
_ASKED: dict[str, Any] = {"max_tokens": 16}  # of an answer
_QUESTION = 16  # random tokens, where a model knows no words


def measure_gpu(
    names: Sequence[str] = SUBJECTS,
    folder: Path = DATA / "gpu",
    *,
    depth: int = 3501,
    repeats: int = 5,
    grid: Sequence[Round] = GRID,
) -> None:
    """Bench and grid of each model, in a folder of its own (columns: data/README.md).

    names: "default", or of common.twins.FULL_SIZES, whose twin is measured. depth: tokens that the bench reads.
    Points of the grid that are deeper than the model or the dossier are left out. Data that is there is
    kept: an interrupted call, as by timeout -s INT 300, can be continued.
    Raises SwarmKVError where llama.cpp finds no GPU.
    """
    if not gpus():
        raise lab.SwarmKVError("llama.cpp finds no GPU here: compile it for one (book/install.md)")
    for name in names:
        data = folder / name
        data.mkdir(parents=True, exist_ok=True)
        with _opened(name) as (model, tokens, agents):
            kept_bench(data, model, tokens, depth=depth, repeats=repeats, agents=agents, **_ASKED)
            deepest = min(len(tokens), model.n_ctx_train - 1024)
            points = [this for this in grid if this.depth <= deepest]
            asked = plan(model, tokens, points, list(lab.STRATEGIES), agents=agents, **_ASKED)
            sweep_rounds(asked, data / "grid.csv")


@contextmanager
def _opened(name: str) -> Iterator[tuple[lab.Model, np.ndarray, dict[str, np.ndarray]]]:
    """A model, the tokens of a document, and agents' prompts: the dossier's, or random ones for a twin."""
    with lab.load_model(None if name == DEFAULT else studies.full_size_twin(name)) as model:
        agents = lab.load_agents("dossier")
        if model.has_vocabulary:
            yield model, model.read(lab.load_document("dossier")), named_prompts(model, agents)
        else:
            rng = np.random.default_rng(0)
            document = rng.integers(0, model.n_vocab, model.n_ctx_train, np.int32)
            yield model, document, {agent: rng.integers(0, model.n_vocab, _QUESTION, np.int32) for agent in agents}


if __name__ == "__main__":
    measure_gpu()
