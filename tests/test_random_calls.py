"""Whatever a caller passes: calls of the helper with one to three arguments that hypothesis chose instead.

A call ends well, or in a SwarmKVError, where each argument is of the kind that it should be; another kind may end in
any of Python's errors. The process lives: it is another one, this file with SEED N, which names on stderr the call that
goes on.
"""

import os
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import suppress
from numbers import Number
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import ROOT, SOAK
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
import swarmkv_studies as studies

INF, NAN = float("inf"), float("nan")
NUMBERS = [-1, 0, 1, 2, 3, 255, 257, 2**31 - 1, 2**31, 2**32 + 1, 2**63, -(2**40), 10**400, True, False, 0.0, -0.5, 0.7]
NUMBERS += [1.0, 1e-40, 1e39, NAN, INF, np.int64(2), np.float32(0.5), np.uint64(2**63)]
TEXTS = ["", " ", "x", "dossier", "shared", "q8_0", "a\0b", "x" * 5000, "\ud800", "<|im_end|>", "no/file.gguf", "://"]
LISTS = [[], (), [[]], [[1, 2], [3]], [1, "x"], [None], ["x"], [-1], [2**40], [0.5], [NAN], range(3), np.zeros(0)]
LISTS += [np.zeros((2, 2), np.int32), np.arange(9)[::2], np.array([1.5]), np.array(["a"]), np.zeros(40, np.uint8)[::2]]
OTHERS = [None, b"bytes", object(), print, Path("/"), 1j, {1, 2}, {}, {"a": 1}, {0: [1]}, np.array(3), np.array([None])]
ODD = st.sampled_from(NUMBERS + TEXTS + LISTS + OTHERS) | st.integers() | st.floats() | st.text(max_size=9)


def kind(value) -> str:
    """What an argument is meant as."""
    if isinstance(value, Number) and not isinstance(value, complex):
        return "number"
    if isinstance(value, list | tuple | range) or (isinstance(value, np.ndarray) and value.dtype != object):
        return "list"
    return "text" if isinstance(value, str | Path) else "another"


def calls(twin: lab.Model, folder: Path) -> list:
    """(function, arguments that work): what a caller can reach."""
    tokens = np.arange(60, dtype=np.int32)
    snapshot = lab.prefill(twin, tokens, progress=False)
    snapshot.save(folder / "doc.kv.safetensors")
    state, shape = snapshot.data.copy(), lab.geometry("smollm2-135m")
    how = {"n_ctx": 512, "kv_type": "f16", "flash_attn": "auto", "n_batch": 512, "n_threads": 1, "swa_full": False}
    many = {"n_seq_max": 4, "n_threads_batch": 1}
    run = lab.fan_out(twin, tokens, [[1]], max_tokens=1)

    def on_context(name):
        def call(**arguments):
            with twin.context(512, n_seq_max=4, n_threads=1) as ctx:
                ctx.decode(tokens)
                result = getattr(ctx, name)(**arguments)
                if name == "stream":
                    list(result)

        call.__qualname__ = name
        return call

    def captured(**arguments):
        with twin.context(512) as ctx:
            ctx.decode(tokens)
            lab.KVSnapshot.capture(ctx, **arguments)

    def restored(**arguments):
        with twin.context(512, n_seq_max=2) as ctx:
            snapshot.restore(ctx, **arguments)

    def built(data, tokens):
        with twin.context(512) as ctx:
            lab.KVSnapshot(data, tokens, snapshot.identity).restore(ctx)

    return [
        (lambda **a: lab.load_model(**a).close(), {"source": twin.path, "n_gpu_layers": 0, "guard_per_context": False}),
        (lambda **a: twin.context(**a).close(), how | many),
        (on_context("decode"), {"tokens": [1, 2], "seq_id": 0, "start": 60, "progress": False}),
        (on_context("decode_many"), {"tokens_by_seq": {0: [1], 1: [2]}, "starts": {0: 60}}),
        (on_context("stream"), {"max_tokens": 3, "sampling": lab.Sampling(), "seq_id": 0}),
        (on_context("logits"), {"seq_id": 0}),
        (on_context("share"), {"src": 0, "dst": 1}),
        (on_context("clear"), {"seq_id": 0}),
        (on_context("truncate"), {"n_tokens": 3, "seq_id": 0}),
        (on_context("get_state"), {"seq_id": 0}),
        (on_context("set_state"), {"state": state, "seq_id": 0}),
        (twin.tokenize, {"text": "x", "add_bos": True, "special": False}),
        (twin.detokenize, {"tokens": [1, 2], "special": False}),
        (twin.is_eog, {"token": 3}),
        (twin.ask, {"question": "x"}),
        (lab.Sampling, {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 1}),
        (lab.Agent, {"name": "a", "prompt": [1], "after": ["b"], "prefix_tokens": 5, "max_tokens": 3}),
        (lambda agents, **a: lab.fan_out(twin, agents=agents, **a), {
            "tokens": tokens, "agents": {"a": [1, 2], "b": [3]}, "strategy": "swarmkv", "max_tokens": 2,
            "sampling": lab.Sampling(), "callback": None, **how, **many,
        }),
        (run.compare, {"reference": run}),
        (lab.load_document, {"name": "dossier"}),
        (lab.prefill, {"model": twin, "tokens": tokens, "progress": False, "n_threads": 1}),
        (captured, {"tokens": tokens, "seq_id": 0}),
        (restored, {"seq_id": 0}),
        (built, {"data": state, "tokens": tokens}),
        (lambda path: snapshot.save(f"x{path}" if isinstance(path, str) else path), {"path": "x"}),
        (lab.KVSnapshot.load, {"path": folder / "doc.kv.safetensors", "model": twin}),
        (lab.geometry, {"source": "smollm2-135m"}),
        (lab.KVGeometry, {
            "n_layer": 2, "n_head_kv": 2, "head_dim_k": 16, "head_dim_v": 16, "n_ctx_train": 512, "window": 4,
        }),
        (shape.snapshot_bytes, {"n_tokens": 3, "kv_type": "f16"}),
        (shape.cache_bytes, {"n_ctx": 512, "kv_type": "f16", "n_seq_max": 1, "n_batch": 512}),
    ]  # fmt: skip


def ended_after(seconds: float) -> None:
    """Have the alarm ring as Ctrl-C does; 0: not at all. Windows has none."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(number: int, n_calls: int) -> None:
    """Draw and make the calls."""
    with suppress(ImportError):  # Windows has none
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # what asks for more is refused, not killed
    warnings.simplefilter("ignore")
    counts, failures = {"ended well": 0, "refused": 0, "of another kind": 0, "interrupted": 0}, []
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
    with (
        TemporaryDirectory() as folder,
        lab.load_model(studies.twin(lab.KVGeometry(1, 1, 32, 32, 4096)), n_gpu_layers=0) as twin,
    ):
        os.chdir(folder)
        known = calls(twin, Path(folder))
        how = {"deadline": None, "database": None, "phases": [Phase.generate], "suppress_health_check": HealthCheck}

        @seed(number)
        @settings(max_examples=n_calls, **how)
        @given(st.data())
        def one(data: st.DataObject) -> None:
            function, arguments = data.draw(st.sampled_from(known))
            names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=3, unique=True))
            odd = {name: data.draw(ODD) for name in names}
            alike = all(kind(odd[name]) == kind(arguments[name]) != "another" for name in names)
            which = f"{getattr(function, '__qualname__', function)} {odd!r:.300}"
            print(which, file=sys.stderr, flush=True)
            try:
                ended_after(5)  # to ask for a thousand million tokens is no fault
                function(**arguments | odd)
                ended_after(0)
                counts["ended well"] += 1
            except lab.SwarmKVError as error:
                counts["refused"] += bool(str(error))
            except KeyboardInterrupt:
                counts["interrupted"] += 1
            except Exception:
                counts["of another kind"] += 1
                if alike:
                    failures.append(f"{which}\n{traceback.format_exc(limit=-3)}")

        one()
    print(*failures, counts, sep="\n")
    sys.exit(bool(failures))


@pytest.mark.parametrize("number", range(10) if SOAK else [0])
def test_random_calls(number):
    command = [sys.executable, __file__, str(number), "2000" if SOAK else "500"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\nthe last call: {done.stderr.splitlines()[-1:]}"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
