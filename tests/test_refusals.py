"""What llama.cpp or the system refuses is never ignored: it is one error with words, and nothing is left half done."""

import ctypes
import errno
import os
import types
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.llama import log
from swarmkv_lab.llama.api import text_of
from swarmkv_lab.llama.generation import generate_together
from swarmkv_lab.llama.guard import LlamaGuard
from swarmkv_lab.llama.sampling import GREEDY, Sampler
from swarmkv_lab.snapshot.file import SnapshotHeader


def answers(monkeypatch, name, value):
    """One of llama.cpp's functions returns this, and does nothing."""
    monkeypatch.setattr(llama_cpp, name, lambda *_: value)


# -- contexts


def test_no_context_is_made(twin, monkeypatch):
    answers(monkeypatch, "llama_init_from_model", None)
    with pytest.raises(lab.SwarmKVError, match=r"llama\.cpp made no context of 256 tokens"):
        twin.context(256)
    monkeypatch.undo()
    twin.context(256).close()


def test_no_logits_are_a_failed_decode(twin, document, monkeypatch):
    with twin.context(512) as ctx:
        ctx.decode(document[:5])
        answers(monkeypatch, "llama_get_logits_ith", None)
        with pytest.raises(lab.DecodeError, match="no logits for row 8 of the batch"):
            ctx.decode(document[:9])
        assert ctx.n_past() == 5


def test_a_code_that_nobody_knows(twin, document, monkeypatch):
    answers(monkeypatch, "llama_decode", 77)
    with twin.context(512) as ctx, pytest.raises(lab.DecodeError, match="returned 77, unknown"):
        ctx.decode(document)


def test_nothing_to_decode(twin):
    with twin.context(256) as ctx, pytest.raises(lab.SwarmKVError, match="nothing to decode"):
        ctx.decode_many({})


def test_a_context_is_filled_to_its_last_cell_and_no_further(twin, document):
    with twin.context(256) as ctx:
        ctx.decode(document[:255])
        ctx.decode(document[:1])
        assert ctx.n_past() == ctx.n_ctx == 256
        with pytest.raises(lab.ContextBudgetError, match="holds 256 tokens and 1 more do not fit"):
            ctx.decode(document[:1])
        snapshot = lab.KVSnapshot.capture(ctx, [*document[:255], document[0]])
        snapshot.restore(ctx)
        assert ctx.n_past() == 256


@pytest.mark.parametrize("n", [0, 3, 300])
def test_a_sequence_keeps_as_many_tokens_as_it_is_told(twin, document, n):
    with twin.context(512) as ctx:
        ctx.decode(document)
        logits = ctx.logits()
        ctx.truncate(n)
        assert ctx.n_past() == n
        if n == 300:  # nothing was removed, and nothing is forgotten
            np.testing.assert_array_equal(ctx.logits(), logits)
        with pytest.raises(lab.SwarmKVError, match=f"has {n} tokens: it cannot keep 301"):
            ctx.truncate(301)


def test_positions_that_cannot_be_shifted(twin, document, monkeypatch):
    answers(monkeypatch, "llama_memory_can_shift", False)
    with twin.context(512) as ctx:
        ctx.decode(document)
        with pytest.raises(lab.SwarmKVError, match=r"twin: llama\.cpp cannot shift"):
            ctx.shift(1)


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
            with pytest.raises(lab.SwarmKVError, match="sequence 0 has no logits"):
                ctx.logits()


def test_a_state_that_is_not_written_whole(twin, document, monkeypatch):
    with twin.context(512) as ctx:
        ctx.decode(document)
        size = ctx.state_bytes()
        answers(monkeypatch, "llama_state_seq_get_data", size - 1)
        with pytest.raises(lab.SnapshotCorruptError, match=f"wrote {size - 1:,} of {size:,} state bytes"):
            lab.KVSnapshot.capture(ctx, document)


def test_a_state_that_is_not_read_to_its_end(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        state = ctx.get_state()
        longer = np.append(state, np.zeros(8, np.uint8))
        with pytest.raises(lab.SnapshotCorruptError, match=f"accepted {len(state):,} of {len(longer):,} state bytes"):
            ctx.set_state(longer)
        assert ctx.n_past() == 0


def test_a_state_that_ends_elsewhere_is_not_kept(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        whole = lab.KVSnapshot.capture(ctx, document)
        short = lab.KVSnapshot(whole.data, document[:-1].copy(), whole.identity)
        short._checked = True  # or this would be noticed before
        with pytest.raises(lab.SnapshotCorruptError, match="ends at 300 tokens, not at its 299"):
            short.restore(ctx)
        assert ctx.n_past() == 0


def test_a_sequence_that_was_changed_is_not_answered_from(twin, document):
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode_many({0: document, 1: document})
        one = ctx.stream(5)
        next(one)
        ctx.truncate(200)
        with pytest.raises(lab.SwarmKVError, match="sequence 0 was changed while its answer was generated"):
            next(one)

        ctx.clear()
        ctx.decode_many({0: document, 1: document})
        failed = {}
        both = generate_together(ctx, {0: (3, GREEDY), 1: (3, GREEDY)}, failed=failed.__setitem__)
        assert set(next(both)) == {0, 1}
        ctx.truncate(200, 1)
        assert [set(step) for step in both] == [{0}, {0}]
        assert "sequence 1 was changed" in str(failed.pop(1))
        assert failed == {}

        ctx.clear()
        ctx.decode_many({0: document, 1: document})
        both = generate_together(ctx, {0: (3, GREEDY), 1: (3, GREEDY)})
        next(both)
        ctx.truncate(200, 1)
        with pytest.raises(lab.SwarmKVError, match="sequence 1 was changed"):
            next(both)


def test_a_sampler_that_selects_nothing(monkeypatch):
    answers(monkeypatch, "llama_sampler_apply", None)
    with pytest.raises(lab.SwarmKVError, match="selected no token"):
        Sampler(lab.Sampling(temperature=1.0)).sample(np.zeros(4, np.float32))


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_each_filter_alone_leaves_the_likeliest(only):
    off = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    logits = np.linspace(0, 2, 200, dtype=np.float32)
    drawn = {Sampler(lab.Sampling(**off | only, seed=seed)).sample(logits) for seed in range(20)}
    assert drawn == {199}
    assert len({Sampler(lab.Sampling(**off, seed=seed)).sample(logits) for seed in range(20)}) > 10


# -- models


def test_what_llama_cpp_says_to_others_goes_to_them(monkeypatch):
    said = []
    monkeypatch.setattr(log, "_before", lambda level, text, data: said.append((level, text)))
    log._on_log(log._ERROR, b"theirs", None)
    with LlamaGuard():
        log._on_log(log._ERROR, b"ours\n", None)
    assert said == [(log._ERROR, b"theirs")]
    assert log.take_errors() == " (llama.cpp: ours)"
    assert log.take_errors() == ""


def test_a_model_that_is_closed(twin, document):
    with lab.load_model(twin.path) as model:
        pass
    for call in (lambda: model.context(256), lambda: model.is_eog(1), lambda: lab.prefill(model, document)):
        with pytest.raises(lab.SwarmKVError, match="this model is closed: load it again"):
            call()


def test_a_model_whose_text_is_being_read_is_not_closed(twin):
    with lab.load_model(twin.path) as model:
        with model._text_guard, pytest.raises(lab.SwarmKVError, match="twin is at work in this thread"):
            model.close()
        assert not model.is_eog(1)


def test_a_file_that_changes_while_it_is_loaded(tmp_path, monkeypatch):
    load_shape("two layers", tmp_path).close()
    load = llama_cpp.llama_model_load_from_file

    def changed(*args):
        handle = load(*args)
        os.utime(tmp_path / "twin.gguf", ns=(1, 1))
        return handle

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", changed)
    with pytest.raises(lab.ModelNotFoundError, match=r"twin\.gguf was changed while it was being loaded"):
        lab.load_model(tmp_path / "twin.gguf")


def test_an_encoder_has_no_prefix_to_share(twin, monkeypatch):
    answers(monkeypatch, "llama_model_has_encoder", True)
    with pytest.raises(lab.SwarmKVError, match=r"twin\.gguf is not a decoder-only model"):
        lab.load_model(twin.path)


def test_metadata_of_any_length_and_none():
    def call(_handle, _index, into, size):
        ctypes.memmove(into, b"x" * (size - 1), size - 1)
        into[min(size - 1, 1300)] = b"\0"
        return 1300

    assert text_of(call, 0, 0) == "x" * 1300
    with pytest.raises(lab.SwarmKVError, match="no metadata entry 7"):
        text_of(lambda *_: -1, 0, 7)


@pytest.mark.parametrize("source", [5, ["a.gguf"]])
def test_what_names_no_model(source):
    with pytest.raises(lab.ModelNotFoundError, match=r"is no model: give a GGUF's path"):
        lab.load_model(source)


def test_a_path_that_no_system_has():
    with pytest.raises(lab.ModelNotFoundError, match="cannot be read"):
        lab.Model("a\0b")


def test_a_model_of_the_hub(twin, monkeypatch):
    def download(repo, file):
        if repo != "some/twin":
            raise OSError(f"404 for {repo}")
        return str(twin.path)

    hub = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", hub)
    assert lab.model_path("some/twin:model.gguf") == twin.path
    with pytest.raises(lab.ModelNotFoundError, match=r"the hub gave no some/other:model.gguf: OSError: 404"):
        lab.model_path("some/other:model.gguf")


def test_tokens_in_rows_of_several_lengths(twin):
    with pytest.raises(lab.SwarmKVError, match="expected a 1-D sequence of token ids"):
        twin.check_tokens([[1], [1, 2]])


@pytest.mark.real
def test_text_that_cannot_be_tokenized(real, monkeypatch):
    with pytest.raises(lab.SwarmKVError, match="the text is a int: pass a str"):
        real.tokenize(5)
    answers(monkeypatch, "llama_tokenize", -3)
    with pytest.raises(lab.SwarmKVError, match=r"could not tokenize 4 bytes of text \(returned -3\)"):
        real.tokenize("text")


def test_a_chat_without_a_template_and_with_an_unknown_one(twin, monkeypatch):
    with pytest.raises(lab.SwarmKVError, match="twin has no chat template"):
        twin.chat([("user", "Who?")])
    monkeypatch.setattr(twin, "chat_template", "nobody's")
    with pytest.raises(lab.SwarmKVError, match="does not know the chat template of twin"):
        twin.chat([("user", "Who?")])


def test_a_chat_of_many_short_turns(twin, monkeypatch):
    """The template's own words are then longer than the messages'."""
    monkeypatch.setattr(twin, "chat_template", "<|im_start|>")
    text = twin.chat([("user", "")] * 200)
    assert text.count("<|im_start|>user\n<|im_end|>\n") == 200
    assert text.endswith("<|im_start|>assistant\n")


# -- snapshots and runs


def test_a_state_whose_geometry_is_not_known(twin, document):
    snapshot = lab.prefill(twin, document)
    odd = lab.KVSnapshot(snapshot.data, snapshot.tokens, replace(snapshot.identity, geometry=None))
    with pytest.raises(lab.SwarmKVError, match="llama: the geometry of its state is not known"):
        odd.state()


def test_positions_that_turn_in_another_way(twin, monkeypatch):
    monkeypatch.setitem(twin.metadata, "llama.rope.scaling.type", "yarn")
    with pytest.raises(lab.SwarmKVError, match="its RoPE is of type 0 with scaling 'yarn', not plain"):
        studies.Rope.of(twin)


def test_a_disk_that_fails_while_a_file_is_read(twin, document, tmp_path, monkeypatch):
    lab.prefill(twin, document).save(tmp_path / "doc")

    def fail(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(SnapshotHeader, "read_state", fail)
    with pytest.raises(lab.SwarmKVError, match="doc could not be read: Input/output error"):
        lab.KVSnapshot.load(tmp_path / "doc", twin)


def test_agents_whose_names_or_order_are_not_text(twin, document):
    with pytest.raises(lab.SwarmKVError, match="an agent's name is text, and 5 is not"):
        lab.fan_out(twin, document, {5: [1, 2]})
    with pytest.raises(lab.SwarmKVError, match="b: after='a', and it is a list of agents' names"):
        lab.Pipeline(twin, document, [lab.Agent("a", [1]), lab.Agent("b", [2], after="a")])
