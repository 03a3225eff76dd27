"""llama-cpp-python's own ways to keep a prefix: its state, its prefix match, its cache."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import chain, islice, takewhile

from llama_cpp import Llama, LlamaRAMCache

import swarmkv_lab as lab
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.geometry import ggml_type


def llama_cpp_python(model: lab.Model, settings: ContextSettings) -> AbstractContextManager[Llama]:
    """llama-cpp-python's high-level class, with the same weights and the same settings as a Context."""
    key, value = map(ggml_type, settings.kv_pair)
    llama = Llama(
        str(model.path),
        n_ctx=settings.cells,
        n_batch=settings.n_batch,
        n_threads=settings.threads,
        n_threads_batch=settings.threads_batch,
        n_gpu_layers=-1 if model.on_gpu else 0,
        flash_attn=settings.uses_flash_attn(model.on_gpu),
        type_k=int(key),
        type_v=int(value),
        verbose=False,
    )
    return closing(llama)


def llama_prefix(llama: Llama, run: Run) -> None:
    """One ``Llama`` object for all agents: it reuses the prefix that a prompt shares with the previous one."""
    _forget(llama)
    with run.holding(lab.context_bytes(run.model, llama.n_ctx())):
        for agent in run.branches:
            _generate(run, llama, agent)


def llama_ram_cache(llama: Llama, run: Run) -> None:
    """``Llama.set_cache(LlamaRAMCache())``: keeps the state of each completion and looks up the longest prefix.

    The agents are unrelated completions, each with its whole prompt, as a server receives them.
    """
    states = LlamaRAMCache(capacity_bytes=8 << 30)
    with ExitStack() as stack:
        stack.callback(llama.set_cache, None)
        llama.set_cache(states)
        stack.enter_context(run.holding(lab.context_bytes(run.model, llama.n_ctx())))
        for i, agent in enumerate(run.branches):
            _forget(llama)  # as after another conversation; otherwise the context itself would hold the prefix
            prompt = run.whole_prompt(agent).tolist()
            chunks = llama.create_completion(prompt, max_tokens=agent.max_tokens, temperature=0.0, stream=True)
            with run.phase(agent, "branch" if i else "prefill"):
                next(chunks)
            with run.phase(agent, "generate"):
                for _ in chunks:
                    pass
            with run.holding(states.cache_size):  # one more state than before
                pass
            (whole,) = (key for key in states.cache_state if list(key[: len(prompt)]) == prompt)  # of this agent's
            agent.tokens += whole[len(prompt) :]


def llama_state(llama: Llama, run: Run) -> None:
    """``Llama.save_state`` after the document, then ``Llama.load_state`` for each agent."""
    llama.reset()
    with run.phase(None, "prefill"):
        llama.eval(run.tokens.tolist())
    with run.phase(None, "capture"):
        state = llama.save_state()
    with run.holding(lab.context_bytes(run.model, llama.n_ctx()) + state.llama_state_size):
        for agent in run.branches:
            with run.phase(agent, "restore", state.llama_state_size):
                llama.load_state(state)
            _generate(run, llama, agent)


LLAMA_PEERS: Mapping[str, Callable[[Llama, Run], None]] = {
    f.__name__: f for f in (llama_prefix, llama_ram_cache, llama_state)
}


def answer_until_end(run: Run, branch: Branch, tokens: Iterable[int]) -> None:
    """An answer from the tokens that a peer would give, until the model ends its turn or max_tokens are out."""
    until_end = takewhile(lambda token: not run.model.is_eog(token), tokens)
    branch.tokens += islice(until_end, branch.max_tokens)


def _generate(run: Run, llama: Llama, agent: Branch) -> None:
    """The agent's answer from ``Llama.generate``, which decodes only tokens that its context does not hold yet."""
    prompt = run.whole_prompt(agent).tolist()
    stream = llama.generate(prompt, temp=0.0)
    with run.phase(agent, "branch" if llama.n_tokens else "prefill"):
        token = next(stream)
    with run.phase(agent, "generate"):
        answer_until_end(run, agent, chain([token], stream))


def _forget(llama: Llama) -> None:
    """Empty the context."""
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.input_ids[:] = -1
