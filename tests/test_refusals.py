"""What a caller, llama.cpp or the system refuses is one error with numbers in it, and nothing is left half done."""

import os
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.llama import api
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.sampling import GREEDY, Sampler, generate_together
from swarmkv_lab.sizing import geometry
from swarmkv_studies.common.twins import write_twin

LONG = "x" * 5000
Refused, Mismatch, Corrupt = lab.SwarmKVError, lab.SnapshotMismatchError, lab.SnapshotCorruptError
Budget, NotFound = lab.ContextBudgetError, lab.ModelNotFoundError
HUGE = 10**5000


def answers(monkeypatch, name, value):
    """One of llama.cpp's functions returns this, and does nothing."""
    monkeypatch.setattr(llama_cpp, name, lambda *_: value)


# -- arguments

SETTINGS = [
    ({"n_ctx": 0}, Refused, "n_ctx=0"),
    ({"n_batch": 0}, Refused, "n_batch=0"),
    ({"n_seq_max": 100_000}, Refused, "n_seq_max=100000"),
    ({"n_threads": 0}, Refused, "n_threads=0"),
    ({"n_threads_batch": 513}, Refused, "513"),
    ({"kv_type": "q3_k"}, Refused, "q3_k"),
    ({"kv_type": ("f16", "f16", "f16")}, Refused, "one name or"),
    ({"kv_type": ("f16", "q8_0"), "flash_attn": False}, Refused, "q8_0"),
    ({"flash_attn": "yes"}, Refused, "yes"),
    ({"swa_full": 1}, Refused, "swa_full=1"),
    ({"n_ctxt": 1}, Refused, "n_ctxt"),
    ({"n_ctx": 10**12}, Refused, "n_ctx=1000000000000"),
    ({"n_ctx": 2**31 - 1}, Budget, "available"),
]


@pytest.mark.parametrize(("setting", "error", "says"), SETTINGS)
def test_settings_of_a_context(real, setting, error, says):
    with pytest.raises(error, match=says):
        real.context(**{"n_ctx": 512} | setting)


CALLS = [
    (lambda ctx: ctx.decode([]), "token ids"),
    (lambda ctx: ctx.decode([[1, 2]]), "token ids"),
    (lambda ctx: ctx.decode([[1], [1, 2]]), "token ids"),
    (lambda ctx: ctx.decode([256]), "token id 256"),
    (lambda ctx: ctx.decode([-1]), "token id -1"),
    (lambda ctx: ctx.decode([0.5]), "token ids"),
    (lambda ctx: ctx.decode("text"), "token ids"),
    (lambda ctx: ctx.decode([1, True]), "True"),
    (lambda ctx: ctx.decode_many({}), "nothing to decode"),
    (lambda ctx: ctx.decode([1], start=-1), "start=-1"),
    (lambda ctx: ctx.decode(np.zeros(300, int)), "60 .*300 .*256"),
    (lambda ctx: ctx.decode([1], 2), "sequence 2 is outside this context's 0 to 1"),
    (lambda ctx: ctx.n_past(-1), "sequence -1"),
    (lambda ctx: ctx.logits(99), "sequence 99"),
    (lambda ctx: ctx.logits(1), "sequence 1 has no logits"),
    (lambda ctx: ctx.clear(2), "sequence 2"),
    (lambda ctx: ctx.state_bytes(True), "sequence True"),
    (lambda ctx: ctx.share(1, 1), "sequence 1"),
    (lambda ctx: ctx.share(0, 2), "sequence 2"),
    (lambda ctx: ctx.truncate(61), "60"),
    (lambda ctx: ctx.shift(1, 60), "start=60"),
    (lambda ctx: ctx.shift(2**31), "delta=2147483648"),
    (lambda ctx: ctx.shift(1, 0, 1), "sequence 1 is empty"),
    (lambda ctx: ctx.stream(-1), "max_tokens=-1"),
    (lambda ctx: ctx.fork(2).__enter__(), "2 forks"),
    (lambda ctx: ctx.model.is_eog(256), "token=256"),
    (lambda ctx: ctx.model.tokenize("\ud800"), "character 0"),
    (lambda ctx: ctx.model.tokenize("text"), "no vocabulary"),
    (lambda ctx: ctx.model.ask(" "), "empty"),
    (lambda ctx: ctx.model.chat([("user", "Who?")]), "no chat template"),
]


@pytest.mark.parametrize(("call", "says"), CALLS, ids=[says for _, says in CALLS])
def test_calls_of_a_context_and_its_model(twin, call, says):
    with twin.context(256, n_seq_max=2) as ctx:
        ctx.decode(np.arange(60))
        before = ctx.logits()
        with pytest.raises(Refused, match=says):
            call(ctx)
        assert (ctx.n_past(0), ctx.n_past(1)) == (60, 0)
        np.testing.assert_array_equal(ctx.logits(), before)


SHAPE = {"n_layer": 2, "n_head_kv": 2, "head_dim_k": 8, "head_dim_v": 8, "n_ctx_train": 9}
OTHERS = [
    (lambda: lab.Sampling(temperature=-1), Refused, "temperature=-1"),
    (lambda: lab.Sampling(temperature=1e-40), Refused, "temperature=1e-40"),
    (lambda: lab.Sampling(temperature=float("nan")), Refused, "temperature=nan"),
    (lambda: lab.Sampling(temperature=1e5), Refused, "100000"),
    (lambda: lab.Sampling(temperature="hot"), Refused, "temperature='hot'"),
    (lambda: lab.Sampling(top_k=-1), Refused, "top_k=-1"),
    (lambda: lab.Sampling(top_p=0), Refused, "top_p=0"),
    (lambda: lab.Sampling(min_p=2), Refused, "min_p=2"),
    (lambda: lab.Sampling(seed=-1), Refused, "seed=-1"),
    (lambda: lab.load_model(n_gpu_layers=HUGE), Refused, "n_gpu_layers=a number of 16,610 bits"),
    (lambda: lab.load_model(n_gpu_layers=-2), Refused, "n_gpu_layers=-2"),
    (lambda: lab.load_model(5), NotFound, "5"),
    (lambda: lab.load_model(LONG), NotFound, "not there"),
    (lambda: lab.Model("a\0b"), NotFound, "cannot be read"),
    (lambda: lab.requantize("a\0b"), NotFound, "not there"),
    (lambda: lab.geometry("smollm2-135m").snapshot_bytes(10.5), Refused, "10.5"),
    (lambda: lab.geometry("smollm2-135m").cache_bytes(True), Refused, "True"),
    (lambda: lab.KVGeometry(**SHAPE | {"n_head_kv": 2.0}), Refused, "n_head_kv=2.0"),
    (lambda: lab.KVGeometry(**SHAPE | {"n_ctx_train": 2**33}), Refused, "8589934592"),
    (lambda: lab.Agent("b", [1], after="a"), Refused, "after='a'"),
    (lambda: lab.load_document(LONG), Refused, "x"),
]


@pytest.mark.parametrize(("call", "error", "says"), OTHERS, ids=[says for *_, says in OTHERS])
def test_other_calls(call, error, says, monkeypatch):
    monkeypatch.delenv("SWARMKV_MODEL", raising=False)
    with pytest.raises(error, match=says):
        call()


def test_share_needs_a_unified_cache(twin):
    with twin.context(512, n_seq_max=2, kv_unified=False) as ctx, pytest.raises(Refused, match="kv_unified"):
        ctx.share(0, 1)


def test_an_error_of_a_callers_own_stays_what_it_was(twin, document):
    def broken(run):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        lab.fan_out(twin, document, [[1]], callback=broken)


def test_an_iterator_of_agents_is_read_once(twin, document):
    agents = [lab.Agent("a", [1]), lab.Agent("b", [2], after=iter(["a"]))]
    assert lab.Pipeline(twin, document, agents).after == {"a": (), "b": ("a",)}


# -- llama.cpp's answers


@pytest.mark.parametrize(("name", "value", "error", "says"), [
    ("llama_init_from_model", None, Refused, "no context of 512 tokens"),
    ("llama_decode", 77, lab.DecodeError, "77"),
    ("llama_get_logits_ith", None, lab.DecodeError, "row 299"),
    ("llama_memory_can_shift", False, Refused, "cannot shift"),
    ("llama_state_seq_get_data", 17, Corrupt, "wrote 17 of"),
    ("llama_state_seq_set_data", 0, Corrupt, "accepted 0 of"),
    ("llama_sampler_apply", None, Refused, "no token"),
])  # fmt: skip
def test_what_llama_cpp_refuses(twin, document, monkeypatch, name, value, error, says):
    def work():
        with twin.context(512) as ctx:
            ctx.decode(document)
            if name == "llama_memory_can_shift":
                ctx.shift(1)
            ctx.set_state(ctx.get_state())
            Sampler(lab.Sampling(temperature=1.0)).sample(np.zeros(4, np.float32))

    answers(monkeypatch, name, value)
    with pytest.raises(error, match=says):
        work()


def test_a_state_with_bytes_left_over_empties_the_sequence(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        longer = np.append(ctx.get_state(), np.zeros(8, np.uint8))
        with pytest.raises(Corrupt, match=f"accepted {len(longer) - 8:,} of {len(longer):,} state bytes"):
            ctx.set_state(longer)
        assert ctx.n_past() == 0


def test_a_state_that_ends_elsewhere_is_not_kept(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        whole = lab.KVSnapshot.capture(ctx, document)
        short = lab.KVSnapshot(whole.data, document[:-1].copy(), whole.identity)
        short._checked = True  # or this would be noticed before
        with pytest.raises(Corrupt, match=r"300.* 299"):
            short.restore(ctx)
        assert ctx.n_past() == 0
        odd = lab.KVSnapshot(whole.data, whole.tokens, replace(whole.identity, geometry=None))
        with pytest.raises(Refused, match="geometry"):
            odd.state()


@pytest.mark.parametrize("kv_type", ["bf16", "q8_0"])
def test_keys_that_llama_cpp_cannot_shift(document, kv_type):
    """The next decode would end the process."""
    wide = studies.twin(lab.KVGeometry(2, 2, 32, 32, 4096))
    with lab.load_model(wide) as model, model.context(512, kv_type=(kv_type, "f16"), flash_attn=True) as ctx:
        ctx.decode(document)
        with pytest.raises(Refused, match=kv_type):
            ctx.shift(3)
        ctx.decode(document[:5])


# -- sequences that were changed


def test_a_context_is_filled_to_its_last_cell_and_no_further(twin, document):
    with twin.context(256) as ctx:
        ctx.decode(document[:255])
        ctx.decode(document[:1])
        assert ctx.n_past() == ctx.n_ctx == 256
        with pytest.raises(Budget, match="256 .* 1 more"):
            ctx.decode(document[:1])
        snapshot = lab.KVSnapshot.capture(ctx, [*document[:255], document[0]])
        snapshot.restore(ctx)
        assert ctx.n_past() == 256


def test_logits_of_another_position_or_sequence_are_forgotten(twin, document, question):
    """After each of these the sequence's last logits would be those of tokens that it does not end with."""
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode(question)
        state = ctx.get_state()
        changes = (lambda: ctx.shift(5), lambda: ctx.truncate(100), ctx.clear, lambda: ctx.clear(0))
        for change in (*changes, lambda: ctx.set_state(state)):
            ctx.clear()
            ctx.decode(document)
            change()
            with pytest.raises(Refused, match="sequence 0 has no logits"):
                ctx.logits()


@pytest.mark.parametrize("how", ["restore", "clear", "share", "truncate", "shift"])
def test_a_stream_ends_when_its_sequence_is_another_of_the_same_length(twin, document, how):
    other = document[::-1].copy()
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode(other)
        snapshot = lab.KVSnapshot.capture(ctx, other)
        ctx.clear()
        ctx.decode(document)
        ctx.decode(other, 1)
        change = {
            "restore": lambda: snapshot.restore(ctx),
            "clear": lambda: (ctx.clear(0), ctx.decode(other)),
            "share": lambda: ctx.share(1, 0),
            "truncate": lambda: (ctx.truncate(50), ctx.decode(other[50:])),
            "shift": lambda: ctx.shift(0),
        }[how]
        stream = ctx.stream(8)
        next(stream)
        change()
        with pytest.raises(Refused, match="sequence 0 was changed"):
            list(stream)


def test_others_go_on_when_one_sequence_was_changed(twin, document):
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode_many({0: document, 1: document})
        failed = {}
        both = generate_together(ctx, {0: (3, GREEDY), 1: (3, GREEDY)}, failed=failed.__setitem__)
        assert set(next(both)) == {0, 1}
        ctx.truncate(200, 1)
        assert [set(step) for step in both] == [{0}, {0}]
        assert list(failed) == [1]


def test_a_shift_moves_no_other_sequence(twin, document):
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode(document)
        ctx.share(0, 1)
        with pytest.raises(Refused, match="sequence 0 shares its cells"):
            ctx.shift(7)
        ctx.clear(1)
        ctx.shift(7)


# -- models


def test_what_llama_cpp_says_to_others_goes_to_them(monkeypatch):
    said = []
    monkeypatch.setattr(api, "_before", lambda level, text, data: said.append((level, text)))
    api._on_log(api._ERROR, b"theirs", None)
    with LlamaGuard():
        api._on_log(api._ERROR, b"ours\n", None)
    assert said == [(api._ERROR, b"theirs")]
    assert (api.take_errors(), api.take_errors()) == (" (llama.cpp: ours)", "")


def test_a_model_that_is_closed_or_at_work(twin, document):
    with lab.load_model(twin.path) as model:
        with model._text_guard, pytest.raises(Refused, match="at work in this thread"):
            model.close()
        assert not model.is_eog(1)
    for call in (lambda: model.context(256), lambda: model.is_eog(1), lambda: lab.prefill(model, document)):
        with pytest.raises(Refused, match="closed"):
            call()


def test_a_file_that_changes_while_it_is_loaded(tmp_path, monkeypatch):
    load_shape("two layers", tmp_path).close()
    load = llama_cpp.llama_model_load_from_file

    def changed(*args):
        handle = load(*args)
        os.utime(tmp_path / "twin.gguf", ns=(1, 1))
        return handle

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", changed)
    with pytest.raises(NotFound, match="changed while it was being loaded"):
        lab.load_model(tmp_path / "twin.gguf")


def test_models_that_cannot_be_used(twin, tmp_path, monkeypatch):
    answers(monkeypatch, "llama_model_has_encoder", True)
    with pytest.raises(Refused, match="not a decoder-only model"):
        lab.load_model(twin.path)
    monkeypatch.setattr(geometry, "MOST_LAYERS", 600)
    path = write_twin(tmp_path / "deep.gguf", lab.KVGeometry(513, 1, 2, 2, 4096))
    with pytest.raises(NotFound, match="513 layers"):
        lab.load_model(path)


# -- chat


@pytest.mark.real
def test_text_that_cannot_be_tokenized(real, monkeypatch):
    answers(monkeypatch, "llama_tokenize", -3)
    with pytest.raises(Refused, match=r"4 bytes of text \(returned -3\)"):
        real.tokenize("text")


def test_messages_that_a_template_does_not_take(twin, monkeypatch):
    monkeypatch.setattr(twin, "chat_template", "{{ raise_exception('not these') }}")
    for text, says in (("\ud800", "character 0"), ("Who?", "not these")):
        with pytest.raises(Refused, match=says):
            twin.chat([("user", text)])
