"""What ended the process, hung, or went on with something else than it was asked for: each is one clear error now."""

import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from conftest import needs

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab import files
from swarmkv_lab.llama import log
from swarmkv_lab.llama.generation import generate_together
from swarmkv_lab.llama.log import interruptible
from swarmkv_lab.sizing import geometry
from swarmkv_lab.sizing.geometry import KV_TYPES
from swarmkv_studies.common.twins import write_twin

SHAPE = {"n_layer": 2, "n_head_kv": 2, "head_dim_k": 8, "head_dim_v": 8, "n_ctx_train": 9}

# -- sequences


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("how", ["restore", "clear", "share", "truncate", "shift"])
def test_a_stream_ends_when_its_sequence_is_another_of_the_same_length(twin, document, how, together):
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
        stream = generate_together(ctx, {0: (8, lab.Sampling())}) if together else ctx.stream(8)
        next(stream)
        change()
        with pytest.raises(lab.SwarmKVError, match="sequence 0 was changed while its answer was generated"):
            list(stream)


@pytest.mark.parametrize("kv_type", [name for name in KV_TYPES if name not in ("f16", "f32")])
def test_keys_that_llama_cpp_cannot_shift(document, kv_type):
    """The next decode would end the process."""
    wide = studies.twin(lab.KVGeometry(2, 2, 32, 32, 4096))
    with lab.load_model(wide) as model, model.context(512, kv_type=(kv_type, "f16"), flash_attn=True) as ctx:
        ctx.decode(document)
        with pytest.raises(lab.SwarmKVError, match=f"f16 and f32 only, and these are {kv_type}"):
            ctx.shift(3)
        ctx.decode(document[:5])


def test_a_shift_moves_no_other_sequence(twin, document):
    with twin.context(1024, n_seq_max=2) as ctx:
        ctx.decode(document)
        ctx.share(0, 1)
        with pytest.raises(lab.SwarmKVError, match="shares its cells"):
            ctx.shift(7)
        ctx.clear(1)
        ctx.shift(7)


# -- models and shapes


def test_a_model_of_more_layers_than_llama_cpp_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry, "MOST_LAYERS", 600)
    path = write_twin(tmp_path / "deep.gguf", lab.KVGeometry(513, 1, 2, 2, 4096))
    with pytest.raises(lab.ModelNotFoundError, match=r"deep.gguf has 513 layers, and llama.cpp takes 512"):
        lab.load_model(path)


@pytest.mark.parametrize("n", [10.5, float("nan"), True, -1, "x", None])
def test_sizes_of_what_is_no_number_of_tokens(n):
    shape = lab.geometry("smollm2-135m")
    for size in (shape.snapshot_bytes, shape.cache_bytes):
        with pytest.raises(lab.SwarmKVError, match="must be a whole number"):
            size(n)
    with pytest.raises(lab.SwarmKVError, match="n_seq_max=0"):
        shape.cache_bytes(10, n_seq_max=0, unified=False)


@pytest.mark.parametrize(
    "change", [{"n_head_kv": True}, {"n_head_kv": 2.0}, {"head_dim_k": 16.0}, {"n_ctx_train": 2**33}]
)
def test_shapes_that_are_no_whole_numbers(change):
    with pytest.raises(lab.SwarmKVError, match=f"{next(iter(change))}=.*: it is a whole number"):
        lab.KVGeometry(**SHAPE | change)


def test_true_is_no_token(twin):
    with pytest.raises(lab.SwarmKVError, match="True and False are none"):
        twin.check_tokens([1, True, 2])


@pytest.mark.real
def test_a_message_that_the_template_would_cut(real):
    with pytest.raises(lab.SwarmKVError, match="a message has a NUL"):
        real.chat([("user", "hello\0 secret")])
    with pytest.raises(lab.SwarmKVError, match="not valid Unicode"):
        real.chat([("user", "\ud800")])


# -- agents


def test_an_iterator_of_agents_is_read_once(twin, document):
    agents = [lab.Agent("a", [1]), lab.Agent("b", [2], after=iter(["a"]))]
    assert lab.Pipeline(twin, document, agents).after == {"a": (), "b": ("a",)}


@pytest.mark.parametrize("name", ["$\\frac$", "a$\\frac{$b", "$x", "a\nb"])
def test_an_agent_of_any_name_is_drawn(twin, document, name, tmp_path):
    pipeline = lab.Pipeline(twin, document, [lab.Agent(name, [1], max_tokens=1), lab.Agent("b", [2], after=[name])])
    run = pipeline.run("shared")
    drawn = (
        studies.timeline({"shared": run.timeline}),
        studies.lanes({"shared": run.timeline}),
        studies.pipeline_timeline({"shared": run.timeline}, pipeline.watermarks),
        studies.graph(pipeline.after, pipeline.watermarks),
    )
    for figure in drawn:
        figure.savefig(tmp_path / "figure.svg")


# -- sweeps on disk


def test_agents_named_as_the_sweep_would_name_them_again(twin, document):
    how = {"depths": [64], "n_agents": [5], "strategies": ["shared"], "repeats": 1, "max_tokens": 1, "progress": False}
    assert studies.sweep(twin, document, agents={"a": [1, 2], "a 2": [3]}, **how).n_agents.tolist() == [5]


@pytest.mark.parametrize("path", [f"{os.devnull}/x.csv", "a\0.csv", "", f"{'x' * 300}.csv"])
def test_paths_that_hold_no_sweep(twin, document, path):
    with pytest.raises(lab.SwarmKVError):
        studies.sweep(twin, document, depths=[64], n_agents=[1], strategies=["shared"], path=path, progress=False)


@pytest.mark.parametrize("content", [b"\xff\xfe\0\n", b'"abc\n', b"a,b\n1,2,3\n4\n1,2,3,4\n"])
def test_a_file_that_is_no_sweeps(twin, document, content, tmp_path):
    how = {"depths": [64], "n_agents": [1], "strategies": ["shared"], "agents": [[1, 2]], "progress": False}
    how |= {"path": tmp_path / "x.csv"}
    studies.sweep(twin, document, **how)
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(lab.SwarmKVError, match=r"x\.csv .*pass another path, or remove this file"):
        studies.sweep(twin, document, **how)


# -- threads and interrupts


def test_closing_a_model_from_one_of_its_threads_waits_for_none_of_the_others(twin, document):
    """It would hold what they wait for."""
    with lab.load_model(twin.path, n_gpu_layers=0, guard_per_context=True) as model:
        looks = itertools.count(1)

        def callback(run):
            if next(looks) == 6:
                model.close()

        def ask(token):
            lab.fan_out(model, document, [[token]], "naive", max_tokens=20, n_threads=1, callback=callback)

        with ThreadPoolExecutor(2) as threads:
            (error,) = filter(None, [job.exception() for job in [threads.submit(ask, i) for i in range(4)]])
        assert "this context is at work in this thread" in str(error)


def test_what_one_thread_drops_is_raised_in_no_other(twin, monkeypatch):
    raised, entered, go_on = [], threading.Event(), threading.Event()

    def work():
        try:
            with interruptible():
                entered.set()
                go_on.wait()
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    with monkeypatch.context() as patch:
        patch.setattr(log.log, "debug", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            twin.context(512)
    go_on.set()
    thread.join()
    assert raised == []


@needs(os, "fork")
def test_an_interrupted_save_leaves_no_file_and_no_descriptor(twin, document, tmp_path, monkeypatch):
    snapshot = lab.prefill(twin, document, progress=False)
    before = len(os.listdir("/proc/self/fd"))
    for name in ("_lock", "_flush", "_replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, Mock(side_effect=KeyboardInterrupt))
            with contextlib.suppress(KeyboardInterrupt):
                snapshot.save(tmp_path / "doc")
    snapshot.save(tmp_path / "doc")
    assert os.listdir(tmp_path) == ["doc"]
    assert len(os.listdir("/proc/self/fd")) == before
