"""answer: an agent's question decoded after its prefix, and its answer generated; several agents in step."""

from collections.abc import Mapping
from itertools import islice

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.context import Context
from swarmkv_lab.llama.generation import decode_together, generate_together


def answer(run: Run, ctx: Context, branches: Mapping[int, Branch]) -> None:
    """Decode each agent's prompt after its sequence's prefix, at position len(prefix), and generate the answers.

    branches: by the sequence that each goes on from. One agent, or several in step: then every llama_decode carries one
    token of each that has not finished.
    """

    def live() -> dict[int, Branch]:
        return {seq_id: branch for seq_id, branch in branches.items() if branch.error is None}

    def fail(seq_id: int, error: SwarmKVError) -> None:
        run.schedule.fail(branches[seq_id], error)

    agents = list(live().values())
    failed = fail if run.schedule.tolerant else None
    with run.phase(agents, "branch"):
        decode_together(ctx, {seq_id: branch.prompt for seq_id, branch in live().items()}, failed)
    for seq_id, branch in live().items():
        branch.logits = ctx.logits(seq_id)
    asked = {seq_id: (branch.max_tokens, branch.sampling) for seq_id, branch in live().items()}
    stream = generate_together(ctx, asked, lambda seq_id: branches[seq_id].error is not None, failed)
    for phase, steps in (("sample", islice(stream, 1)), ("generate", stream)):
        with run.phase(agents, phase) as end:
            for step in steps:
                for seq_id, branch in branches.items():
                    if seq_id in step:
                        run.take(branch, step[seq_id])
                    if seq_id not in step or len(branch.tokens) == branch.max_tokens:
                        end(branch.name)  # the others may go on for longer
