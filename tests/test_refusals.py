"""What a caller, llama.cpp or the system refuses is one error with numbers in it, and nothing is left half done."""

import os
import re
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.llama.sampling import GREEDY, Sampler, generate_together
from swarmkv_lab.sizing import geometry
from swarmkv_studies.common.twins import write_twin

Refused, Corrupt, NotFound = lab.SwarmKVError, lab.SnapshotCorruptError, lab.ModelNotFoundError


def each(table):
    """(name, value) of a table of names and wrong values."""
    return [pytest.param(name, value, id=f"{name} {value!r:.20}") for name, wrong in table.items() for value in wrong]


def says_one_of(error, *wrong):
    return any(str(what) in str(error.value).replace(",", "") for what in wrong)


# -- arguments

SETTINGS = {
    "n_ctx": (0, 10**12, 2**31 - 1),
    "n_batch": (0,),
    "n_seq_max": (100_000,),
    "n_threads": (0,),
    "n_threads_batch": (0, 513),
    "kv_type": ("q3_k", ("f16", "f16", "f16")),
    "flash_attn": ("yes",),
    "swa_full": (1,),
}


@pytest.mark.parametrize(("name", "value"), each(SETTINGS))
def test_settings_of_a_context(twin, name, value):
    with pytest.raises(lab.ContextBudgetError if value == 2**31 - 1 else Refused) as error:
        twin.context(**{"n_ctx": 512} | {name: value})
    assert says_one_of(error, name, value)


def test_quantized_values_need_flash_attention(twin):
    with pytest.raises(Refused, match="q8_0"):
        twin.context(512, kv_type=("f16", "q8_0"), flash_attn=False)


CALLS = {  # a tuple is more arguments than one
    "decode": ([], [[1, 2]], [[1], [1, 2]], [256], [-1], [0.5], "text", [1, True], [0] * 300, ([1], 2)),
    "decode_many": ({},),
    "n_past": (-1,),
    "logits": (99, 1),
    "clear": (2,),
    "state_bytes": (True,),
    "share": ((1, 1), (0, 2)),
    "truncate": (61,),
    "stream": (-1,),
    "is_eog": (256,),
    "tokenize": ("\ud800", "text"),  # it has no vocabulary
    "ask": (" ",),
}


@pytest.mark.parametrize(("name", "arguments"), each(CALLS))
def test_calls_of_a_context_and_its_model(twin, name, arguments):
    with twin.context(256, n_seq_max=2) as ctx:
        ctx.decode(np.arange(60))
        before = ctx.logits()
        call = getattr(ctx, name, None) or getattr(twin, name)
        with pytest.raises(Refused) as error:
            call(*(arguments if isinstance(arguments, tuple) else [arguments]))
        numbers = re.findall(r"\d{2,}", str(arguments))
        assert not numbers or says_one_of(error, 300, *numbers)
        assert (ctx.n_past(0), ctx.n_past(1)) == (60, 0)
        np.testing.assert_array_equal(ctx.logits(), before)


SAMPLING = {
    "temperature": (-1, 1e-40, float("nan"), 1e5, "hot"),
    "top_k": (-1,),
    "top_p": (0,),
    "min_p": (2,),
    "seed": (-1,),
}


@pytest.mark.parametrize(("name", "value"), each(SAMPLING))
def test_how_to_sample(name, value):
    with pytest.raises(Refused, match=name):
        lab.Sampling(**{name: value})


def test_greedy_takes_the_first_of_the_likeliest_and_no_damaged_row():
    logits = np.array([0, 3, -np.inf, 3], np.float32)
    assert Sampler().sample(logits) == 1
    for damaged in (np.full(4, -np.inf), np.array([0, np.nan, 3, 1])):
        with pytest.raises(lab.SwarmKVError):
            Sampler().sample(damaged.astype(np.float32))


def test_threads_of_one_token_and_of_many_reach_llama_cpp(twin):
    for how, expected in (({"n_threads": 1, "n_threads_batch": 2}, (1, 2)), ({"n_threads": 2}, (2, 2))):
        with twin.context(256, **how) as ctx:
            found = llama_cpp.llama_n_threads(ctx.handle), llama_cpp.llama_n_threads_batch(ctx.handle)
        assert found == expected


@pytest.mark.parametrize(("call", "says"), [
    (lambda: lab.load_model(n_gpu_layers=-2), "-2"),
    (lambda: lab.load_model(5), "5"),
    (lambda: lab.geometry("smollm2-135m").snapshot_bytes(10.5), "10.5"),
    (lambda: lab.geometry("smollm2-135m").cache_bytes(True), "True"),
])  # fmt: skip
def test_other_calls(call, says):
    with pytest.raises(Refused, match=says):
        call()


def test_an_error_of_a_callers_own_stays_what_it_was(twin, document):
    def broken(run):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        lab.fan_out(twin, document, [[1]], callback=broken)


# -- llama.cpp's answers


@pytest.mark.parametrize(("name", "value", "error", "says"), [
    ("llama_init_from_model", None, Refused, "512"),
    ("llama_decode", 77, lab.DecodeError, "77"),
    ("llama_get_logits_ith", None, lab.DecodeError, "299"),
    ("llama_state_seq_get_data", 17, Corrupt, "17"),
    ("llama_state_seq_set_data", 0, Corrupt, "0 of"),
    ("llama_sampler_apply", None, Refused, None),
    ("llama_tokenize", -3, Refused, "4.*-3"),
])  # fmt: skip
def test_what_llama_cpp_refuses(twin, speaker, document, monkeypatch, name, value, error, says):
    monkeypatch.setattr(llama_cpp, name, lambda *_: value)
    with pytest.raises(error, match=says):  # noqa: PT012
        with twin.context(512) as ctx:
            ctx.decode(document)
            ctx.set_state(ctx.get_state())
        Sampler(lab.Sampling(temperature=1.0)).sample(np.zeros(4, np.float32))
        speaker.tokenize("text")


def test_a_state_with_bytes_left_over_empties_the_sequence(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        longer = np.append(ctx.get_state(), np.zeros(8, np.uint8))
        with pytest.raises(Corrupt, match=f"{len(longer) - 8:,} of {len(longer):,}"):
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
        with pytest.raises(Refused):
            odd.state()


# -- sequences that were changed


def test_a_context_is_filled_to_its_last_cell_and_no_further(twin, document):
    with twin.context(256) as ctx:
        ctx.decode(document[:255])
        ctx.decode(document[:1])
        assert ctx.n_past() == ctx.n_ctx == 256
        with pytest.raises(lab.ContextBudgetError, match=r"256 .* 1 "):
            ctx.decode(document[:1])
        snapshot = lab.KVSnapshot.capture(ctx, [*document[:255], document[0]])
        snapshot.restore(ctx)
        assert ctx.n_past() == 256


def test_logits_of_another_position_or_sequence_are_forgotten(twin, document, question):
    """After each of these the sequence's last logits would be those of tokens that it does not end with."""
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode(question)
        state = ctx.get_state()
        changes = (lambda: ctx.truncate(100), ctx.clear, lambda: ctx.clear(0))
        for change in (*changes, lambda: ctx.set_state(state)):
            ctx.clear()
            ctx.decode(document)
            change()
            with pytest.raises(Refused, match="sequence 0"):
                ctx.logits()


@pytest.mark.parametrize("how", ["restore", "clear", "share", "truncate"])
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
        }[how]
        stream = ctx.stream(8)
        next(stream)
        change()
        with pytest.raises(Refused, match="sequence 0"):
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


# -- models


def test_a_model_that_is_closed_or_at_work(twin, document):
    with lab.load_model(twin.path) as model:
        with model._text_guard, pytest.raises(Refused):
            model.close()
        assert not model.is_eog(1)
    for call in (lambda: model.context(256), lambda: model.is_eog(1), lambda: lab.prefill(model, document)):
        with pytest.raises(Refused):
            call()


def test_a_file_that_changes_while_it_is_loaded(tmp_path, monkeypatch):
    load_shape("two layers", tmp_path).close()
    load = llama_cpp.llama_model_load_from_file

    def changed(*args):
        handle = load(*args)
        os.utime(tmp_path / "twin.gguf", ns=(1, 1))
        return handle

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", changed)
    with pytest.raises(NotFound):
        lab.load_model(tmp_path / "twin.gguf")


def test_more_layers_than_llama_cpp_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry, "MOST_LAYERS", 600)
    path = write_twin(tmp_path / "deep.gguf", lab.KVGeometry(513, 1, 2, 2, 4096))
    with pytest.raises(NotFound, match="513"):
        lab.load_model(path)


def test_a_rotation_that_the_environment_turned_off(twin, monkeypatch):
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    twin.context(64).close()  # f16 is never rotated
    with pytest.raises(lab.SwarmKVError, match="LLAMA_ATTN_ROT_DISABLE"):
        twin.context(64, kv_type=("q8_0", "f16"))


def test_composed_where_it_is_not_taken_is_told_where_it_is(twin, document):
    with pytest.raises(lab.SwarmKVError, match=r"lab\.fan_out"):
        studies.race(twin, document, [[1]], ["composed"])
