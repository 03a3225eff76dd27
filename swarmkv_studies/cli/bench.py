"""What the command bench does: strategies, and what people use instead, on one document."""

from contextlib import ExitStack
from typing import Any

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.options import cut, open_model
from swarmkv_lab.cli.program import Asked, report
from swarmkv_studies.common.summary import bench_text
from swarmkv_studies.peers import strategies as peer_strategies

_DEPTH = 3501


def run_bench(asked: Asked) -> None:
    """Measure what was asked for, and report it. Raises SwarmKVError before that for what cannot be done."""
    text = lab.load_document(asked.document)
    settings: dict[str, Any] = {"n_threads": asked.threads} if asked.threads is not None else {}
    with ExitStack() as stack:
        model = stack.enter_context(open_model(asked))
        tokens = cut(asked, model.read(text), _DEPTH)
        strategies: list[Any] = asked.strategies or list(lab.STRATEGIES)
        if asked.peers:
            n_ctx = len(tokens) + 1024 + asked.max_tokens
            strategies += stack.enter_context(peer_strategies.opened(asked.peers, model, n_ctx, **settings)).values()
        result, _ = studies.bench(
            model,
            tokens,
            depth=len(tokens),
            n_agents=asked.agents,
            strategies=strategies,
            repeats=asked.repeats,
            max_tokens=asked.max_tokens,
            **settings,
        )
    report(asked, result, bench_text(result))
