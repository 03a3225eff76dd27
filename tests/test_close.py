"""close() while something is going on: it waits, or what runs ends with one clear error; the process lives."""

import os
import subprocess
import sys
import threading

import pytest
from conftest import load_shape, often

import swarmkv_lab as lab
from swarmkv_lab.llama import model as model_file
from swarmkv_lab.llama.api import Device


@pytest.mark.parametrize("what", ["context", "model"])
@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_a_callback_cannot_close_what_is_at_work(twin, document, question, what, strategy):
    with lab.load_model(twin.path) as model:
        opened = []
        open_context = model.open_context
        model.open_context = lambda settings: opened.append(open_context(settings)) or opened[-1]
        close = model.close if what == "model" else lambda: opened[-1].close()
        with pytest.raises(lab.SwarmKVError):
            lab.fan_out(model, document, [question], strategy, max_tokens=2, callback=lambda run: close())
        assert not [ctx for ctx in model._contexts if ctx._free.alive]
        # nor can a signal handler, in the middle of a decode
        with model.context(512) as ctx:
            ctx._interrupt.callback = ctx.close
            with pytest.raises(lab.SwarmKVError):
                ctx.decode(document)
        run = lab.fan_out(model, document, [question], strategy, max_tokens=2)  # the model lives on
        assert run.compare(lab.fan_out(twin, document, [question], strategy, max_tokens=2)).same_tokens.all()


def test_closing_a_model_from_one_of_its_threads_waits_for_none_of_the_others(twin):
    """It would hold what they wait for."""
    held, done = threading.Event(), threading.Event()
    with lab.load_model(twin.path, n_gpu_layers=0, guard_per_context=True) as model:
        mine, other = model.context(256), model.context(256)

        def hold():
            with other.guard:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        mine.callback = model.close
        with pytest.raises(lab.SwarmKVError):
            mine.decode([1])
        assert not done.is_set()
        assert mine.n_past() == 0
        done.set()
        thread.join()


ROUNDS = """
import random, sys, threading, time
import numpy as np
import swarmkv_lab as lab

path, what, n_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
random.seed(1)
tokens = np.arange(200, dtype=np.int32)


def pipeline(model):
    run = lab.Pipeline(model, tokens, [lab.Agent("a", [1]), lab.Agent("b", [2])]).run("naive", n_threads=1)
    for error in run.errors.values():
        raise error


for i in range(n_rounds):
    model = lab.load_model(path, n_gpu_layers=0, guard_per_context=bool(i % 2))
    ctx = model.context(512, n_threads=1)
    work = {
        "fan_out": lambda: lab.fan_out(
            model, tokens, [[1, 2]] * 3, random.choice(list(lab.STRATEGIES)), max_tokens=4, n_threads=1
        ),
        "pipeline": lambda: pipeline(model),
        "context": lambda: (ctx.clear(), ctx.decode(tokens), list(ctx.stream(4)), ctx.get_state(), ctx.logits),
        "text": lambda: (model.detokenize(model.tokenize("Who sells the company, and why? " * 50)), model.ask("Who?")),
        "is_eog": lambda: [model.is_eog(token) for token in range(200)],
    }[what]
    said = []

    def go():
        try:
            while True:
                work()
        except lab.SwarmKVError as error:
            said.append(str(error))

    thread = threading.Thread(target=go)
    thread.start()
    time.sleep(random.uniform(0, 0.02))
    (ctx if what == "context" and i % 3 else model).close()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    assert said and "closed" in said[0], said
    model.close()
print("alive")
"""


@pytest.mark.soak
@pytest.mark.parametrize("what", ["fan_out", "pipeline", "context", "is_eog", "text"])
def test_closing_while_another_thread_is_at_it(twin, speaker_path, what, all_cores):
    command = [sys.executable, "-c", ROUNDS, speaker_path if what == "text" else twin.path, what, str(often(100))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-2000:]


def test_a_model_file_that_is_written_to_is_not_relied_on(tmp_path, document):
    """Its weights are mapped from it: a snapshot of them would bear the wrong name."""
    with load_shape("two layers", tmp_path) as model:
        snapshot = lab.prefill(model, document)
        with model.path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        os.utime(model.path, (1, 1))  # a clock too coarse for the test to wait for
        with model.context(512) as ctx:
            ctx.decode(document)
            for work in (lambda: lab.KVSnapshot.capture(ctx, document), lambda: snapshot.restore(ctx)):
                with pytest.raises(lab.SwarmKVError):
                    work()


def test_models_on_one_gpu_take_turns(twin, monkeypatch):
    monkeypatch.setattr(model_file, "gpus", lambda: [Device("CUDA0", "a GPU", 1, "CUDA")])
    with lab.load_model(twin.path) as one, lab.load_model(twin.path) as other:
        assert one.guard is other.guard
        with one.context(256) as a, other.context(256) as b:
            assert a.guard is b.guard
        with pytest.raises(lab.SwarmKVError, match="n_gpu_layers=0"):
            lab.load_model(twin.path, guard_per_context=True)
    with lab.load_model(twin.path, n_gpu_layers=0) as one, lab.load_model(twin.path, n_gpu_layers=0) as other:
        assert one.guard is not other.guard


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no file that llama.cpp has mapped")
def test_what_was_loaded_stays_what_it_is(tmp_path, document, question):
    """Another file under the same name later on is another model: hash and geometry are those of the loaded one."""
    with load_shape("two layers", tmp_path) as model:
        before = model.content_hash, model.geometry
        other = tmp_path / "other"
        other.mkdir()
        load_shape("one layer", other).close()
        os.replace(other / "twin.gguf", model.path)
        assert (model.content_hash, model.geometry) == before
        snapshot = lab.prefill(model, document)
    with lab.load_model(tmp_path / "twin.gguf") as replaced:
        assert replaced.content_hash != before[0]
        with replaced.context(512) as ctx, pytest.raises(lab.SnapshotMismatchError):
            snapshot.restore(ctx)
