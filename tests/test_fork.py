"""A forked child of a process that has decoded: it is told to use spawn, and never waits for ever."""

import subprocess
import sys

import pytest

FORKED = """
import os, sys, threading, time
import numpy as np
import swarmkv_lab as lab

tokens = np.arange(100, dtype=np.int32)
model = lab.load_model(sys.argv[1], n_gpu_layers=0)
ctx = model.context(512)


def decode():
    ctx.clear()
    ctx.decode(tokens)
    return ctx.logits().sum()


def fresh():
    with lab.load_model(sys.argv[1], n_gpu_layers=0) as again, again.context(512) as other:
        other.decode(tokens)


def in_child(work):
    if not (child := os.fork()):
        try:
            print(work(), flush=True)
        except lab.SwarmKVError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def hold():
    with model.guard:
        time.sleep(1)


in_child(decode)  # nothing was decoded before: no threads were lost
print(decode())
holder = threading.Thread(target=hold)
holder.start()
time.sleep(0.2)
in_child(decode)
in_child(ctx.n_past)  # what needs no threads works, and waits for no guard of the parent's threads
holder.join()
in_child(fresh)
in_child(lambda: lab.fan_out(model, tokens, [[1, 2]], "naive"))
in_child(lambda: (ctx.close(), model.close()))
print(decode())
with model.guard:
    in_child(decode)  # forked by who holds the guard, as in a callback
print(decode())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_forked_child_is_told_to_use_spawn(twin):
    done = subprocess.run([sys.executable, "-c", FORKED, twin.path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    before, parent, held, n_past, fresh, fan_out, closed, after, mine, again = done.stdout.splitlines()
    assert before == parent == after == again
    assert n_past == "100"
    assert closed == "(None, None)"
    for refused in (held, fresh, fan_out, mine):
        assert 'multiprocessing.get_context("spawn")' in refused
