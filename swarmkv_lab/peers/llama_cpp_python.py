"""llama-cpp-python's own ways to keep a prefix: its state, its prefix match, its caches."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache

from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.fanout.strategies import Strategy
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.geometry import ggml_type


@contextmanager
def llama_cpp_python(model: Model, settings: ContextSettings) -> Iterator[Llama]:
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
    try:
        yield llama
    finally:
        llama.close()


def llama_state(run: Run, llama: Llama) -> None:
    """``Llama.save_state`` after the document, then ``Llama.load_state`` for each agent."""
    llama.reset()
    with run.phase(None, "prefill"):
        llama.eval(run.tokens.tolist())
    with run.phase(None, "capture"):
        state = llama.save_state()
    with run.recorder.holding(_cache_bytes(run, llama) + state.llama_state_size):
        for agent in run.branches:
            with run.phase(agent, "restore", state.llama_state_size):
                llama.load_state(state)
            _generate(run, llama, agent)


def llama_prefix(run: Run, llama: Llama) -> None:
    """One ``Llama`` object for all agents: it reuses the prefix that a prompt shares with the previous one."""
    _forget(llama)
    with run.recorder.holding(_cache_bytes(run, llama)):
        for agent in run.branches:
            _generate(run, llama, agent)


def llama_ram_cache(run: Run, llama: Llama) -> None:
    """``Llama.set_cache(LlamaRAMCache())``: keeps the state of each completion and looks up the longest prefix."""
    llama.set_cache(LlamaRAMCache(capacity_bytes=8 << 30))
    _complete_all(run, llama)


def llama_disk_cache(run: Run, llama: Llama) -> None:
    """``Llama.set_cache(LlamaDiskCache())``: like llama_ram_cache, on disk."""
    with tempfile.TemporaryDirectory() as folder:
        llama.set_cache(LlamaDiskCache(folder, capacity_bytes=8 << 30))
        try:
            _complete_all(run, llama)
        finally:
            llama.cache.cache.close()  # Windows removes no folder with a file that is open


LLAMA_PEERS: Mapping[str, Callable[[Run, Llama], None]] = {
    f.__name__: f for f in (llama_state, llama_prefix, llama_ram_cache, llama_disk_cache)
}


def on(name: str, llama: Llama) -> Strategy:
    """One of LLAMA_PEERS with this ``Llama`` object, as a strategy."""

    def answer(run: Run) -> None:
        try:
            LLAMA_PEERS[name](run, llama)
        finally:
            llama.set_cache(None)

    return Strategy(name, answer)


def _generate(run: Run, llama: Llama, agent: Branch) -> None:
    """The agent's answer from ``Llama.generate``, which decodes only tokens that its context does not hold yet."""
    prompt = run.whole_prompt(agent)
    stream = llama.generate(prompt, temp=0.0)
    with run.phase(agent, "branch" if llama.n_tokens else "prefill"):
        token = next(stream)
    with run.phase(agent, "generate"):
        while not run.model.is_eog(token):
            agent.tokens.append(token)
            if len(agent.tokens) >= agent.max_tokens:
                break
            token = next(stream)


def _complete_all(run: Run, llama: Llama) -> None:
    """Completions with a cache: unrelated agents, each with its whole prompt, as a server receives them."""
    _forget(llama)
    with run.recorder.holding(_cache_bytes(run, llama)):
        for i, agent in enumerate(run.branches):
            prompt = run.whole_prompt(agent)
            if i:  # as after another conversation; otherwise the context itself would hold the prefix
                _forget(llama)
            chunks = llama.create_completion(prompt, max_tokens=agent.max_tokens, temperature=0.0, stream=True)
            with run.phase(agent, "branch" if i else "prefill"):
                next(chunks)
            with run.phase(agent, "generate"):
                for _ in chunks:
                    pass
            in_memory = llama.cache.cache_size if isinstance(llama.cache, LlamaRAMCache) else 0
            with run.recorder.holding(in_memory):  # one more state than before
                pass
            keys = llama.cache.cache if isinstance(llama.cache, LlamaDiskCache) else llama.cache.cache_state
            (whole,) = (key for key in keys if list(key[: len(prompt)]) == prompt)  # the key of this agent's state
            agent.tokens += whole[len(prompt) :]


def _forget(llama: Llama) -> None:
    """Empty the context."""
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.input_ids[:] = -1


def _cache_bytes(run: Run, llama: Llama) -> int:
    return run.model.geometry.cache_bytes(llama.n_ctx()) if run.model.sized else 0
