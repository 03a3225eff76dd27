"""llama-cpp-python's own ways to keep a prefix: its state, its prefix match, its caches."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import chain

from llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.catalogue import context_bytes
from swarmkv_lab.sizing.geometry import ggml_type
from swarmkv_studies.peers.prompts import take_all


def llama_cpp_python(model: Model, settings: ContextSettings) -> AbstractContextManager[Llama]:
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


def llama_state(run: Run, llama: Llama) -> None:
    """``Llama.save_state`` after the document, then ``Llama.load_state`` for each agent."""
    llama.reset()
    with run.phase(None, "prefill"):
        llama.eval(run.tokens.tolist())
    with run.phase(None, "capture"):
        state = llama.save_state()
    with run.holding(context_bytes(run.model, llama.n_ctx()) + state.llama_state_size):
        for agent in run.branches:
            with run.phase(agent, "restore", state.llama_state_size):
                llama.load_state(state)
            _generate(run, llama, agent)


def llama_prefix(run: Run, llama: Llama) -> None:
    """One ``Llama`` object for all agents: it reuses the prefix that a prompt shares with the previous one."""
    _forget(llama)
    with run.holding(context_bytes(run.model, llama.n_ctx())):
        for agent in run.branches:
            _generate(run, llama, agent)


def llama_ram_cache(run: Run, llama: Llama) -> None:
    """``Llama.set_cache(LlamaRAMCache())``: keeps the state of each completion and looks up the longest prefix."""
    _complete_all(run, llama, LlamaRAMCache(capacity_bytes=8 << 30))


def llama_disk_cache(run: Run, llama: Llama) -> None:
    """``Llama.set_cache(LlamaDiskCache())``: like llama_ram_cache, on disk."""
    with tempfile.TemporaryDirectory() as folder:
        states = LlamaDiskCache(folder, capacity_bytes=8 << 30)
        with closing(states.cache):  # Windows removes no folder with a file that is open
            _complete_all(run, llama, states)


LLAMA_PEERS: Mapping[str, Callable[[Run, Llama], None]] = {
    f.__name__: f for f in (llama_state, llama_prefix, llama_ram_cache, llama_disk_cache)
}


def on(name: str, llama: Llama) -> Strategy:
    """One of LLAMA_PEERS with this ``Llama`` object, as a strategy."""
    return Strategy(name, lambda run: LLAMA_PEERS[name](run, llama))


def _generate(run: Run, llama: Llama, agent: Branch) -> None:
    """The agent's answer from ``Llama.generate``, which decodes only tokens that its context does not hold yet."""
    prompt = run.whole_prompt(agent).tolist()
    stream = llama.generate(prompt, temp=0.0)
    with run.phase(agent, "branch" if llama.n_tokens else "prefill"):
        token = next(stream)
    with run.phase(agent, "generate"):
        take_all(run, agent, chain([token], stream))


def _complete_all(run: Run, llama: Llama, states: LlamaRAMCache | LlamaDiskCache) -> None:
    """Completions with a cache: unrelated agents, each with its whole prompt, as a server receives them."""
    in_memory = isinstance(states, LlamaRAMCache)
    with ExitStack() as stack:
        stack.callback(llama.set_cache, None)
        llama.set_cache(states)
        stack.enter_context(run.holding(context_bytes(run.model, llama.n_ctx())))
        for i, agent in enumerate(run.branches):
            _forget(llama)  # as after another conversation; otherwise the context itself would hold the prefix
            prompt = run.whole_prompt(agent).tolist()
            chunks = llama.create_completion(prompt, max_tokens=agent.max_tokens, temperature=0.0, stream=True)
            with run.phase(agent, "branch" if i else "prefill"):
                next(chunks)
            with run.phase(agent, "generate"):
                for _ in chunks:
                    pass
            with run.holding(states.cache_size if in_memory else 0):  # one more state than before
                pass
            keys = states.cache_state if in_memory else states.cache
            (whole,) = (key for key in keys if list(key[: len(prompt)]) == prompt)  # the key of this agent's state
            agent.tokens += whole[len(prompt) :]


def _forget(llama: Llama) -> None:
    """Empty the context."""
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.input_ids[:] = -1
