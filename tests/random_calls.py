"""random_calls.py SEED N: N calls of the public API, each with one to three arguments that hypothesis chose instead.

Every call ends well, or in a SwarmKVError. The last line on stderr names the call that was going on.
"""

import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
import swarmkv_studies as studies

NUMBERS = [-1, 0, 1, 2, 3, 255, 257, 2**31 - 1, 2**31, 2**32 + 1, 2**63, -(2**40), 10**400, True, False]
NUMBERS += [
    0.0,
    -0.5,
    0.7,
    1.0,
    1e-40,
    1e39,
    float("nan"),
    float("inf"),
    np.int64(2),
    np.float32(0.5),
    np.uint64(2**63),
]
TEXTS = [
    "",
    " ",
    "x",
    "dossier",
    "shared",
    "q8_0",
    "a\0b",
    "x" * 5000,
    "\ud800",
    "<|im_end|>",
    "no/such/file.gguf",
    "://",
]
THINGS = [
    None,
    b"bytes",
    object(),
    print,
    Path("nowhere"),
    Path("/"),
    1j,
    range(3),
    {1, 2},
    {},
    {"a": 1},
    {0: [1]},
    [],
    (),
]
THINGS += [[[]], [[1, 2], [3]], [1, "x"], [None], ["x"], [-1], [2**40], [0.5], ["a", [1, 2]], [float("nan")]]
ARRAYS = [np.zeros(0), np.zeros((2, 2), np.int32), np.arange(9)[::2], np.array([1.5]), np.array(["a"]), np.array(3)]
ARRAYS += [
    np.zeros(40, np.uint8)[::2],
    np.zeros(40, np.uint8),
    np.array([None]),
    pd.DataFrame({"a": [1]}),
    pd.DataFrame(),
]
ODD = st.sampled_from(NUMBERS + TEXTS + THINGS + ARRAYS) | st.integers() | st.floats() | st.text(max_size=9)


def calls(twin: lab.Model, folder: Path) -> list:
    """(function, arguments that work): what a caller can reach, but for what measures for minutes."""
    tokens = np.arange(60, dtype=np.int32)
    snapshot = lab.prefill(twin, tokens, progress=False)
    snapshot.save(folder / "doc.kv.safetensors")
    frame = pd.read_csv(lab.files.REFERENCE / "grid.csv")
    cost = studies.CostModel.fit(frame)
    shape = lab.geometry("smollm2-135m")
    pipeline = lab.Pipeline(twin, tokens, [lab.Agent("a", [1, 2], max_tokens=2), lab.Agent("b", [3], after=["a"])])
    run = lab.fan_out(twin, tokens, [[1]], max_tokens=1)
    spec = folder / "spec.toml"
    spec.write_text("document = 'article'\n[agents.a]\nprompt = 'Who?'\n", encoding="utf-8")
    link, cached = studies.Link(1e8, 1e-3), studies.Document(1 << 20, 1.0, 0.1)
    service = pd.DataFrame({"first_s": [0.1, 0.2], "rest_s": [0.3, 0.1]})
    how = {"n_ctx": 512, "kv_type": "f16", "flash_attn": "auto", "n_batch": 512, "n_threads": 1, "swa_full": False}
    many = {"n_seq_max": 4, "kv_unified": True, "n_threads_batch": 1}

    def opened(name, **arguments):
        with twin.context(512, n_seq_max=4, n_threads=1) as ctx:
            ctx.decode(tokens)
            result = getattr(ctx, name)(**arguments)
            if name == "stream":
                list(result)
            if name == "fork":
                with result:
                    pass

    def captured(**arguments):
        with twin.context(512) as ctx:
            ctx.decode(tokens)
            lab.KVSnapshot.capture(ctx, **arguments)

    def restored(**arguments):
        with twin.context(512, n_seq_max=2) as ctx:
            snapshot.restore(ctx, **arguments)

    def best(**arguments):
        with twin.context(512, n_seq_max=4) as ctx:
            ctx.decode(tokens)
            studies.best_of(ctx, **arguments)

    def built(data, tokens):
        with twin.context(512) as ctx:
            lab.KVSnapshot(data, tokens, snapshot.identity).restore(ctx)

    def on_context(name):
        return lambda **arguments: opened(name, **arguments)

    state = snapshot.data.copy()
    return [
        (lambda **a: lab.load_model(**a).close(), {"source": twin.path, "n_gpu_layers": 0, "guard_per_context": False}),
        (lab.model_path, {"source": twin.path}),
        (lambda **a: twin.context(**a).close(), how | many),
        (on_context("decode"), {"tokens": [1, 2], "seq_id": 0, "start": 60, "progress": False}),
        (on_context("decode_many"), {"tokens_by_seq": {0: [1], 1: [2]}, "starts": {0: 60}}),
        (on_context("stream"), {"max_tokens": 3, "sampling": lab.Sampling(), "seq_id": 0}),
        (on_context("generate"), {"max_tokens": 3, "sampling": lab.Sampling(0.8), "seq_id": 0}),
        (on_context("logits"), {"seq_id": 0}),
        (on_context("n_past"), {"seq_id": 0}),
        (on_context("share"), {"src": 0, "dst": 1}),
        (on_context("fork"), {"n": 2, "seq_id": 0}),
        (on_context("clear"), {"seq_id": 0}),
        (on_context("truncate"), {"n_tokens": 3, "seq_id": 0}),
        (on_context("shift"), {"delta": 3, "start": 0, "seq_id": 0}),
        (on_context("state_bytes"), {"seq_id": 0}),
        (on_context("get_state"), {"seq_id": 0}),
        (on_context("set_state"), {"state": state, "seq_id": 0}),
        (twin.tokenize, {"text": "x", "add_bos": True, "special": False}),
        (twin.detokenize, {"tokens": [1, 2], "special": False}),
        (twin.check_tokens, {"tokens": [1, 2]}),
        (twin.is_eog, {"token": 3}),
        (twin.chat, {"messages": [("user", "x")]}),
        (twin.read, {"document": "x"}),
        (twin.ask, {"question": "x"}),
        (lab.Sampling, {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 1}),
        (lab.Agent, {"name": "a", "prompt": [1], "after": ["b"], "prefix_tokens": 5, "max_tokens": 3}),
        (lambda agents, **a: lab.fan_out(twin, agents=agents, **a), {
            "tokens": tokens, "agents": {"a": [1, 2], "b": [3]}, "strategy": "swarmkv", "max_tokens": 2,
            "sampling": lab.Sampling(), "callback": None, **how, **many,
        }),
        (lambda **a: studies.bench(twin, **a), {
            "tokens": tokens, "depth": 30, "n_agents": 1, "strategies": ["shared"], "repeats": 1,
            "max_tokens": 1, "n_threads": 1,
        }),
        (lambda **a: studies.sweep(twin, **a), {
            "tokens": tokens, "depths": [30], "n_agents": [1], "strategies": ["shared"], "repeats": 1,
            "agents": {"a": [1]}, "max_tokens": 1, "path": None, "progress": False,
        }),
        (lambda **a: lab.Pipeline(twin, **a), {"document": tokens, "agents": [lab.Agent("a", [1])]}),
        (pipeline.run, {"strategy": "shared", "on_token": None, "callback": None, **how}),
        (run.compare, {"reference": run}),
        (studies.load_pipeline, {"source": spec, "model": twin, "n_tokens": 20}),
        (lab.load_document, {"name": "dossier"}),
        (lab.load_agents, {"name": "dossier"}),
        (lab.prefill, {"model": twin, "tokens": tokens, "cache": False, "progress": False, "n_threads": 1}),
        (captured, {"tokens": tokens, "seq_id": 0}),
        (restored, {"seq_id": 0}),
        (best, {"n": 2, "max_tokens": 2, "sampling": lab.Sampling(0.8), "seq_id": 0}),
        (built, {"data": state, "tokens": tokens}),
        (lambda path: snapshot.save(f"x{path}" if isinstance(path, str) else path), {"path": "x"}),
        (lab.KVSnapshot.load, {"path": folder / "doc.kv.safetensors", "model": twin}),
        (lab.KVSnapshot.from_bytes, {"data": snapshot.to_bytes()}),
        (lab.describe, {"path": folder / "doc.kv.safetensors"}),
        (snapshot.state().keys, {"layer": 0}),
        (snapshot.state().positions_of, {"layer": 0}),
        (lab.geometry, {"source": "smollm2-135m"}),
        (lab.KVGeometry, {
            "n_layer": 2, "n_head_kv": 2, "head_dim_k": 16, "head_dim_v": 16, "n_ctx_train": 512, "window": 4,
            "swa": (True, False),
        }),
        (shape.snapshot_bytes, {"n_tokens": 3, "kv_type": "f16", "n_stream": 1, "swa_full": False}),
        (shape.bytes_per_token, {"kv_type": "f16"}),
        (shape.cache_bytes, {
            "n_ctx": 512, "kv_type": "f16", "n_seq_max": 1, "unified": True, "n_batch": 512, "swa_full": False,
            "flash_attn": True,
        }),
        (studies.measure_kv, {"source": twin, "n_tokens": 30, "kv_type": "f16", "progress": False}),
        (studies.catalogue_bytes, {"n_tokens": 30, "kv_type": "f16"}),
        (studies.agents_by_budget, {
            "names": ["qwen2.5-7b"], "budgets_gb": [8], "n_tokens": 300, "tail": 9, "kv_type": "f16",
        }),
        (studies.twin, {"geometry": shape}),
        (studies.CostModel.fit, {"runs": frame}),
        (cost.predict, {"depths": [300], "n_agents": [2]}),
        (cost.speedup, {"depths": [300], "n_agents": [2], "strategy": "shared"}),
        (cost.bound, {"depths": [300], "n_agents": [2]}),
        (cost.break_even, {"strategy": "shared", "n_agents": 2, "deepest": 4096}),
        (studies.Link, {"bytes_per_s": 1e8, "latency_s": 0.1}),
        (studies.Document, {"nbytes": 100, "prefill_s": 1.0, "restore_s": 0.1}),
        (studies.Document.of, {
            "model": "qwen2.5-7b", "n_tokens": 300, "prefill": 800, "kv_type": "f16", "restore_s": 0.1,
        }),
        (studies.break_even_bandwidth, {"model": shape, "n_tokens": 300, "prefill": cost, "kv_type": "q8_0"}),
        (studies.shipping, {
            "document": cached, "link": link, "n_machines": 9, "store_bytes_per_s": 1e9, "ways": ["star", "tree"],
        }),
        (studies.simulate_cluster, {
            "document": cached, "link": link, "n_machines": 9, "n_agents": 90, "service": service, "ways": ["join"],
            "warm": False, "store_bytes_per_s": 1e9, "seed": 1,
        }),
        (studies.measurements, {"name": "reference"}),
        (studies.profile, {"name": "quick"}),
        (lab.kl_divergence, {"p_logits": np.zeros(4), "q_logits": np.ones(4)}),
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
    counts, failures = {"ended well": 0, "refused": 0, "interrupted": 0}, []
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
    with (
        TemporaryDirectory() as folder,
        lab.load_model(studies.twin(lab.KVGeometry(1, 1, 32, 32, 4096)), n_gpu_layers=0) as twin,
    ):
        os.chdir(folder)
        known = calls(twin, Path(folder))

        @seed(number)
        @settings(
            max_examples=n_calls,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=HealthCheck,
        )
        @given(st.data())
        def one(data: st.DataObject) -> None:
            function, arguments = data.draw(st.sampled_from(known))
            names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=3, unique=True))
            odd = {name: data.draw(ODD) for name in names}
            which = getattr(function, "__qualname__", str(function))
            print(f"{which} {odd!r:.300}", file=sys.stderr, flush=True)
            try:
                ended_after(5)  # to ask for a thousand million runs is no fault
                function(**arguments | odd)
                ended_after(0)
                counts["ended well"] += 1
            except lab.SwarmKVError as error:
                counts["refused"] += bool(str(error))
            except KeyboardInterrupt:
                counts["interrupted"] += 1
            except Exception:
                failures.append(f"{which} {odd!r:.300}\n{traceback.format_exc(limit=-3)}")

        one()
    print(*failures, counts, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
