"""KeyboardInterrupt in every phase: what was there stays, contexts are closed, guards are free, the next call works."""

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, product
from unittest.mock import Mock

import llama_cpp
import numpy as np
import pytest
from conftest import needs

import swarmkv_lab as lab
from swarmkv_lab.llama import api
from swarmkv_lab.llama.guard import LONG
from swarmkv_lab.llama.sampling import Sampler


def is_free(guard) -> bool:
    """Whether another thread could enter."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(lambda: guard.acquire(blocking=False) and (guard.release() or True)).result()


def at_operation(ctx, number, act):
    """Do something at the so-many-th of llama.cpp's operations in a decode, as a signal that arrives there would."""
    asked = count(1)
    ctx._interrupt.callback = lambda: next(asked) == number and act()


def test_an_interrupt_stops_a_batch_in_its_middle(twin, document, question, monkeypatch, listening):
    decode, codes = llama_cpp.llama_decode, []
    with twin.context(512) as ctx:
        ctx.decode(question)
        monkeypatch.setattr(llama_cpp, "llama_decode", lambda *args: codes.append(decode(*args)) or codes[-1])
        at_operation(ctx, 9, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            ctx.decode(document)
        assert codes == [2]  # aborted, of the only call that there would have been
        assert ctx.n_past() == len(question)
        assert is_free(ctx.guard)
        ctx.decode(question)
        with twin.context(512) as fresh:
            fresh.decode(question)
            fresh.decode(question)
            np.testing.assert_array_equal(ctx.logits(), fresh.logits())


@needs(signal, "SIGUSR1")
def test_a_handler_that_does_not_raise_stops_nothing(twin, document):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_args: seen.append(True))
    try:
        with twin.context(512) as ctx:
            at_operation(ctx, 9, lambda: signal.raise_signal(signal.SIGUSR1))
            ctx.decode(document)
            assert (ctx.n_past(), seen) == (300, [True])
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("n", [LONG - 1, LONG])
def test_being_asked_changes_no_bit(twin, document, n, monkeypatch):
    with twin.context(512) as ctx:
        ctx.decode(document[:n])
        asked = ctx.logits()
    monkeypatch.setattr("swarmkv_lab.llama.guard.LONG", 10**9)
    with twin.context(512) as ctx:
        ctx.decode(document[:n])
        np.testing.assert_array_equal(ctx.logits(), asked)


# -- in any phase of a run: before its work, and after it, when what it made is not yet anybody's

PHASES = [
    (lab.Model, "open_context"),
    (lab.Context, "_decode_chunk"),
    (lab.Context, "get_state"),
    (lab.Context, "set_state"),
    (lab.Context, "share"),
    (lab.Context, "_go_back"),  # only after a decode that failed
    (lab.KVSnapshot, "copy"),
    (Sampler, "sample"),
]


class Calls:
    """Of a method: the at-th call raises KeyboardInterrupt, before its work or after it; 0: none does."""

    def __init__(self, monkeypatch, kind, name, at=0, after=False):
        self.n, original = 0, getattr(kind, name)

        def counted(*args, **how):
            self.n += 1
            if self.n != at:
                return original(*args, **how)
            if after:
                original(*args, **how)
            raise KeyboardInterrupt

        monkeypatch.setattr(kind, name, counted)


def assert_nothing_is_held(model):
    assert is_free(model.guard)
    assert [ctx for ctx in model._contexts if ctx._free.alive] == []


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize(("kind", "name"), PHASES, ids=[name for _, name in PHASES])
def test_an_interrupt_in_any_phase(twin, document, question, strategy, kind, name):
    def run():
        return lab.fan_out(twin, document, [question, question[:4]], strategy, max_tokens=3)

    def failing(patch):
        if name == "_go_back":
            patch.setattr(lab.Context, "_decode_chunk", Mock(side_effect=lab.DecodeError("returned -3")))

    expected = run()
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch, kind, name)
        failing(patch)
        with suppress(lab.DecodeError):
            run()
    for at, after in product({*range(1, calls.n + 1)} & {1, 2, calls.n}, (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            Calls(patch, kind, name, at, after)
            failing(patch)
            with pytest.raises(KeyboardInterrupt):
                run()
        assert_nothing_is_held(twin)
    assert run().compare(expected).max_abs_logit_diff.max() == 0


@pytest.mark.parametrize("what", ["load", "context", "decode", "restore", "close"])
def test_an_interrupt_in_llama_cpps_log_is_raised_after_the_call(twin, document, what, monkeypatch, listening):
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
        lines = count()
        with monkeypatch.context() as patch:
            patch.setattr(api.log, "debug", lambda line: next(lines) or signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                work()
    assert signal.getsignal(signal.SIGINT) is before
    assert is_free(twin.guard)
    with twin.context(512) as ctx:
        snapshot.restore(ctx)
