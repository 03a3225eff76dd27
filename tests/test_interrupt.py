"""KeyboardInterrupt in every phase: what was there stays, contexts are closed, guards are free, the next call works."""

import os
import signal
import threading
import time
from unittest.mock import Mock

import llama_cpp
import numpy as np
import pytest
from conftest import needs

import swarmkv_lab as lab
from swarmkv_lab.llama import log
from swarmkv_lab.llama.interrupt import LONG


def is_free(guard) -> bool:
    """Whether another thread could enter."""
    free = []

    def enter():
        if guard.acquire(blocking=False):
            guard.release()
            free.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return bool(free)


class Soon:
    """A signal to this process, sent by another thread a moment after a (long) decode has begun."""

    def __init__(self, monkeypatch, number=signal.SIGINT):
        self.codes, decode, begun = [], llama_cpp.llama_decode, threading.Event()

        def send():
            begun.wait()
            time.sleep(0.3)
            os.kill(os.getpid(), number)

        def call(*args):
            begun.set()
            self.codes.append(decode(*args))
            return self.codes[-1]

        threading.Thread(target=send, daemon=True).start()
        monkeypatch.setattr(llama_cpp, "llama_decode", call)


@pytest.fixture
def listening():
    """Ctrl-C raises, also where this process was started in the background and told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.real
@needs(signal, "SIGUSR1")  # where os.kill sends a signal; on Windows it ends the process
def test_an_interrupt_stops_a_batch_in_its_middle(real, monkeypatch, listening):
    tokens = real.tokenize(lab.load_document("dossier"))[:2000]
    with real.context(2048, n_batch=2048) as ctx:
        ctx.decode(tokens[:20])
        soon = Soon(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            ctx.decode(tokens[20:])
        assert soon.codes == [2]  # aborted, of the only call that there would have been
        assert ctx.n_past() == 20
        assert is_free(ctx.guard)
        ctx.decode(tokens[20:40])
        logits = ctx.logits()
    with real.context(2048, n_batch=2048) as ctx:
        ctx.decode(tokens[:20])
        ctx.decode(tokens[20:40])
        np.testing.assert_array_equal(ctx.logits(), logits)


@pytest.mark.real
@needs(signal, "SIGUSR1")
def test_whatever_a_signal_handler_raises_comes_out(real, monkeypatch):
    class Alarm(Exception):
        pass

    def handler(*_args):
        raise Alarm

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        tokens = real.tokenize(lab.load_document("dossier"))[:2000]
        with real.context(2048, n_batch=2048) as ctx:
            soon = Soon(monkeypatch, signal.SIGUSR1)
            with pytest.raises(Alarm):
                ctx.decode(tokens)
            assert soon.codes == [2]
            assert ctx.n_past() == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.real
@needs(signal, "SIGUSR1")
def test_a_handler_that_does_not_raise_stops_nothing(real, monkeypatch):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_args: seen.append(time.monotonic()))
    try:
        tokens = real.tokenize(lab.load_document("dossier"))[:400]
        with real.context(1024) as ctx:
            Soon(monkeypatch, signal.SIGUSR1)
            while not seen:
                ctx.clear()
                ctx.decode(tokens)
                assert ctx.n_past() == 400
        assert len(seen) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("n", [LONG - 1, LONG])
def test_being_asked_changes_no_bit(twin, document, n, monkeypatch):
    with twin.context(512) as ctx:
        ctx.decode(document[:n])
        asked = ctx.logits()
    monkeypatch.setattr("swarmkv_lab.llama.interrupt.LONG", 10**9)
    with twin.context(512) as ctx:
        ctx.decode(document[:n])
        np.testing.assert_array_equal(ctx.logits(), asked)


# -- in any phase of a run: before its work, and after it, when what it made is not yet anybody's

PHASES = {
    "context": ("swarmkv_lab.llama.model.Model.open_context", list(lab.STRATEGIES)),
    "decode": ("swarmkv_lab.llama.context.Context._decode_chunk", list(lab.STRATEGIES)),
    "capture": ("swarmkv_lab.llama.context.Context.get_state", ["swarmkv", "pooled"]),
    "copy": ("swarmkv_lab.snapshot.snapshot.KVSnapshot.copy", ["swarmkv"]),
    "restore": ("swarmkv_lab.llama.context.Context.set_state", ["swarmkv", "pooled"]),
    "share": ("swarmkv_lab.llama.context.Context.share", ["shared", "batched"]),
    "sample": ("swarmkv_lab.llama.sampling.Sampler.sample", list(lab.STRATEGIES)),
}
ONCE = {
    ("context", "pooled"),
    ("context", "shared"),
    ("context", "batched"),
    ("capture", "swarmkv"),
    ("capture", "pooled"),
}


def interrupt(monkeypatch, where, at, after):
    """The at-th call of a method raises KeyboardInterrupt, before its work or after it."""
    owner, _, name = where.rpartition(".")
    module, _, kind = owner.rpartition(".")
    kind = getattr(__import__(module, fromlist=[kind]), kind)
    original, calls = getattr(kind, name), []

    def interrupted(*args, **how):
        calls.append(name)
        if len(calls) != at:
            return original(*args, **how)
        if after:
            original(*args, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, name, interrupted)


def assert_nothing_is_held(model):
    assert is_free(model.guard)
    assert [ctx for ctx in model._contexts if ctx._free.alive] == []


@pytest.mark.parametrize(
    ("phase", "strategy"), [(phase, name) for phase, (_, names) in PHASES.items() for name in names]
)
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_any_phase(twin, document, question, strategy, phase, after, monkeypatch):
    prompts = [question, question[:4]]
    expected = lab.fan_out(twin, document, prompts, strategy, max_tokens=3)
    interrupt(monkeypatch, PHASES[phase][0], 1 if (phase, strategy) in ONCE else 2, after)
    with pytest.raises(KeyboardInterrupt):
        lab.fan_out(twin, document, prompts, strategy, max_tokens=3)
    monkeypatch.undo()
    assert_nothing_is_held(twin)
    again = lab.fan_out(twin, document, prompts, strategy, max_tokens=3)
    assert again.compare(expected).max_abs_logit_diff.max() == 0


@pytest.mark.parametrize("what", ["load", "context", "decode", "restore", "close"])
def test_an_interrupt_while_llama_cpp_logs_is_not_lost(twin, document, what, monkeypatch):
    """Python prints and drops what is raised in a callback from C."""
    with twin.context(512) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
        ctx.clear()
        work = {
            "load": lambda: lab.load_model(twin.path),
            "context": lambda: twin.context(512),
            "decode": lambda: ctx.decode(document),
            "restore": lambda: snapshot.restore(ctx),
            "close": ctx.close,
        }[what]
        with monkeypatch.context() as patch:
            patch.setattr(log.log, "debug", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                work()
    assert is_free(twin.guard)
    with twin.context(512) as ctx:
        snapshot.restore(ctx)


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_while_a_failed_decode_is_rolled_back(twin, document, question, strategy, after, monkeypatch):
    expected = lab.fan_out(twin, document, [question], strategy, max_tokens=3)

    def fail(*_args):
        raise lab.DecodeError("llama_decode returned -3")

    monkeypatch.setattr(lab.Context, "_decode_chunk", fail)
    interrupt(monkeypatch, "swarmkv_lab.llama.context.Context._go_back", 1, after)
    with pytest.raises(KeyboardInterrupt):
        lab.fan_out(twin, document, [question], strategy, max_tokens=3)
    monkeypatch.undo()
    assert_nothing_is_held(twin)
    again = lab.fan_out(twin, document, [question], strategy, max_tokens=3)
    assert again.compare(expected).max_abs_logit_diff.max() == 0
