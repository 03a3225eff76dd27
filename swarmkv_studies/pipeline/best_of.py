"""best_of: many continuations of one state of an agent, in step."""

from dataclasses import replace

import numpy as np
import pandas as pd

from swarmkv_lab.fanout.outcome import log_softmax
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.sampling import Sampler, Sampling, generate_together

VARIED = Sampling(temperature=0.8)


def best_of(
    ctx: Context, n: int, *, max_tokens: int = 64, sampling: Sampling = VARIED, seq_id: int = 0
) -> pd.DataFrame:
    """n answers from where a sequence stands (its logits are there), each with a seed of its own: the best one first.

    A row per fork: seed (``sampling.seed`` and the numbers after it), answer, tokens (its ids), logprobs (of each token
    that was drawn, the end of the turn included; nats, by the model at temperature 1), and their mean, mean_logprob,
    which is the score. Forks share the sequence's cells, and end with this.
    Raises SwarmKVError when fewer than n sequences of the context are free.
    """
    with ctx.fork(n, seq_id) as forks:
        scored = {fork: _Scored(replace(sampling, seed=sampling.seed + i)) for i, fork in enumerate(forks)}
        tokens: dict[int, list[int]] = {fork: [] for fork in forks}
        for step in generate_together(ctx, {fork: (max_tokens, sampler) for fork, sampler in scored.items()}):
            for fork, token in step.items():
                tokens[fork].append(token)
    rows = [
        {
            "seed": scored[fork].seed,
            "answer": ctx.model.detokenize(answer),
            "tokens": answer,
            "logprobs": scored[fork].logprobs,
            "mean_logprob": sum(scored[fork].logprobs) / max(1, len(scored[fork].logprobs)),
        }
        for fork, answer in tokens.items()
    ]
    return pd.DataFrame(rows).sort_values("mean_logprob", ascending=False, kind="stable", ignore_index=True)


class _Scored(Sampler):
    """A sampler that keeps the log-probabilities of what it drew, the end of the turn included."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.seed = sampling.seed
        self.logprobs: list[float] = []

    def sample(self, logits: np.ndarray) -> int:
        """The next token id, as Sampler draws it."""
        token = super().sample(logits)
        self.logprobs.append(float(log_softmax(logits)[token]))
        return token
