"""KeyboardInterrupt in every phase: what was there stays, contexts are closed, guards are free, the next call works."""

import signal
import threading

import llama_cpp
import numpy as np
import pytest
from conftest import needs

import swarmkv_lab as lab
from swarmkv_lab.llama import api
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


@pytest.fixture
def listening():
    """Ctrl-C raises, also where this process was started in the background and told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_operation(ctx, number, act):
    """Do something at the so-many-th of llama.cpp's operations in a decode, as a signal that arrives there would."""
    asked = []

    def unless():
        asked.append(True)
        if len(asked) == number:
            act()
        return False

    return ctx.stopping(unless)


def test_an_interrupt_stops_a_batch_in_its_middle(twin, document, question, monkeypatch, listening):
    decode, codes = llama_cpp.llama_decode, []
    with twin.context(512) as ctx:
        ctx.decode(question)
        monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: codes.append(decode(*args)) or codes[-1])
        with pytest.raises(KeyboardInterrupt), at_operation(ctx, 9, lambda: signal.raise_signal(signal.SIGINT)):
            ctx.decode(document)
        assert codes == [2]  # aborted, of the only call that there would have been
        assert ctx.n_past() == len(question)
        assert is_free(ctx.guard)
        ctx.decode(question)
        logits = ctx.logits()
    with twin.context(512) as ctx:
        ctx.decode(question)
        ctx.decode(question)
        np.testing.assert_array_equal(ctx.logits(), logits)


@needs(signal, "setitimer")
def test_an_interrupt_at_any_moment_comes_out(twin, document, listening):
    def decode_for_ever(ctx):
        while True:
            ctx.clear()
            ctx.decode(document)

    before = signal.signal(signal.SIGALRM, lambda *_args: signal.raise_signal(signal.SIGINT))
    try:
        with twin.context(512) as ctx:
            for i in range(20):
                signal.setitimer(signal.ITIMER_REAL, 0.005 + i / 1000)
                with pytest.raises(KeyboardInterrupt):
                    decode_for_ever(ctx)
                assert is_free(ctx.guard)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@needs(signal, "SIGUSR1")
def test_a_handler_that_does_not_raise_stops_nothing(twin, document):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_args: seen.append(True))
    try:
        with twin.context(512) as ctx, at_operation(ctx, 9, lambda: signal.raise_signal(signal.SIGUSR1)):
            ctx.decode(document)
            assert (ctx.n_past(), seen) == (300, [True])
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


def press(pressed):
    pressed.append(True)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("what", ["load", "context", "decode", "restore", "close"])
def test_an_interrupt_while_llama_cpp_logs_is_raised_when_the_call_is_through(
    twin, document, what, monkeypatch, listening
):
    """Python prints and drops what is raised in a callback from C."""
    before = signal.getsignal(signal.SIGINT)
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
        pressed = []
        with monkeypatch.context() as patch:
            patch.setattr(api.log, "debug", lambda line: pressed or press(pressed))
            with pytest.raises(KeyboardInterrupt):
                work()
        assert pressed
    assert signal.getsignal(signal.SIGINT) is before
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
