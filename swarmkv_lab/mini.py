"""The whole idea on raw llama.cpp calls: the file to read first. To run it: python -m swarmkv_lab.mini

A document's KV cache is all that an agent needs of it. It is computed once (a prefill), and then given to each agent:
as bytes that are copied into a context of the agent's own, as the article does it, or as a second name for the same
cells, which moves no bytes. Either way the agent's question stands at position n, right after the document's n tokens.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

import llama_cpp as llama
import numpy as np

DOCUMENT, AGENT = 0, 1  # sequences of a context
QUIET = llama.llama_log_callback(lambda level, text, data: None)


def fan_out(path: str, document: str, question: str, n_document: int = 1024, n_answer: int = 24) -> dict[str, Any]:
    """Answer a question over the document's first tokens from a restored snapshot, and from shared cells.

    Returns what ``answer`` does under "restore" and "share", and under "ms" how long each step took, by its name.
    """
    ms: dict[str, float] = {}
    model = need(llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params()), "model")
    prefix = tokenize(model, document, bos=True)[:n_document]
    asked = tokenize(model, f"\n\nQuestion: {question}\nAnswer:", bos=False)  # a BOS here would be another prompt
    n, n_ctx = len(prefix), len(prefix) + len(asked) + n_answer

    first = new_context(model, n_ctx)
    timed(ms, "prefill", lambda: decode(model, first, prefix, start=0, sequence=DOCUMENT))

    # The article: serialize once; for each agent a new context, restored from the bytes.
    snapshot = np.empty(llama.llama_state_seq_get_size(first, DOCUMENT), np.uint8)
    data = snapshot.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    capture, restore = llama.llama_state_seq_get_data, llama.llama_state_seq_set_data
    need(timed(ms, "capture", lambda: capture(first, data, snapshot.nbytes, DOCUMENT)) == snapshot.nbytes, "capture")
    second = new_context(model, n_ctx)
    need(timed(ms, "restore", lambda: restore(second, data, snapshot.nbytes, DOCUMENT)) == snapshot.nbytes, "restore")
    restored = answer(model, second, asked, n, DOCUMENT, n_answer)

    # Further: the agent's sequence is given the document's cells. They get a second name, and nothing moves.
    memory = llama.llama_get_memory(first)
    timed(ms, "share", lambda: llama.llama_memory_seq_cp(memory, DOCUMENT, AGENT, -1, -1))
    shared = answer(model, first, asked, n, AGENT, n_answer)

    for ctx in (first, second):
        llama.llama_free(ctx)
    llama.llama_model_free(model)
    return {"restore": restored, "share": shared, "ms": ms}


def new_context(model: Any, n_ctx: int) -> Any:
    """A KV cache of n_ctx cells that both sequences share."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_seq_max, params.kv_unified = n_ctx, n_ctx, 2, True
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED  # on a CPU it makes questions twice as slow
    return need(llama.llama_init_from_model(model, params), "context")


def decode(model: Any, ctx: Any, tokens: list[int], start: int, sequence: int) -> np.ndarray:
    """Compute the cells of tokens at positions start, start + 1, ... of a sequence.

    Returns the last token's logits, float32 (n_vocab,): what the model expects to come next.
    """
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, i == len(tokens) - 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    need(llama.llama_decode(ctx, batch) == 0, "decode")
    llama.llama_batch_free(batch)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(need(llama.llama_get_logits_ith(ctx, -1), "logits"), (n_vocab,)).copy()


def answer(model: Any, ctx: Any, asked: list[int], n: int, sequence: int, most: int) -> tuple[str, np.ndarray]:
    """The answer's text, greedy, and the logits after the question, which is decoded at position n."""
    vocabulary = llama.llama_model_get_vocab(model)
    tokens: list[int] = []
    logits = first = decode(model, ctx, asked, n, sequence)
    while len(tokens) < most and not llama.llama_vocab_is_eog(vocabulary, token := int(logits.argmax())):
        logits = decode(model, ctx, [token], n + len(asked) + len(tokens), sequence)
        tokens.append(token)
    text, ids = ctypes.create_string_buffer(64 * (most + 1)), (ctypes.c_int32 * len(tokens))(*tokens)
    size = llama.llama_detokenize(vocabulary, ids, len(tokens), text, len(text), False, False)
    need(size >= 0, "detokenize")
    return text.raw[:size].decode("utf-8", "replace"), first


def tokenize(model: Any, text: str, bos: bool) -> list[int]:
    """Token ids. Markers of the chat template in the text stay text: a document is not to be obeyed."""
    data, vocabulary = text.encode(), llama.llama_model_get_vocab(model)
    ids = (ctypes.c_int32 * (len(data) + 2))()
    size = llama.llama_tokenize(vocabulary, data, len(data), ids, len(ids), bos, False)
    need(size > 0, "tokenize")
    return list(ids[:size])


def timed(ms: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """The work's result; ms[name] is how long it took."""
    start = time.perf_counter()
    result = work()
    ms[name] = 1e3 * (time.perf_counter() - start)
    return result


def need(value: Any, what: str) -> Any:
    """The value, if llama.cpp gave one: it reports a failure by 0, NULL or a number that is not the one expected."""
    if not value:
        raise RuntimeError(f"llama.cpp failed: {what}")
    return value


def main() -> None:
    """The default model over the dossier: both answers and the times."""
    import swarmkv_lab as lab

    llama.llama_log_set(QUIET, None)
    run = fan_out(str(lab.model_path()), lab.load_document("dossier"), "How many customers does the company have?")
    (restored, first), (shared, again) = run["restore"], run["share"]
    print(f"restored: {restored.strip()}\nshared:   {shared.strip()}")
    print("bits:     " + ("the same" if np.array_equal(first, again) else "different"))
    print("ms:       " + ", ".join(f"{name} {value:,.1f}" for name, value in run["ms"].items()))


if __name__ == "__main__":
    main()
