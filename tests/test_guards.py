"""Guards: the unguarded process comes to its end alone, and all guarded ways give the same answers."""

import signal
import subprocess
from contextlib import suppress
from unittest.mock import Mock

import psutil
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.llama_guard import guards
from swarmkv_studies.llama_guard.guards import VARIANTS


@pytest.mark.real
def test_threads_without_a_guard_end_their_process_and_not_this_one(real, all_cores, monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_TEST", str(tmp_path))  # what it starts inherits this, also when it outlives it
    document = real.tokenize(lab.load_document("dossier"))[:200]
    questions = [real.ask(question) for question in list(lab.load_agents("dossier").values())[:2]]
    (outcome,) = guards.trials_without_guard(real, document, questions, trials=1, rounds=50).outcome
    assert outcome in guards.OUTCOMES[:3]
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SWARMKV_TEST") == str(tmp_path):
                left.append(process)
    assert left == []


def test_all_variants_answer_alike(twin, document, question):
    before = twin.guard
    frame = studies.compare_guards(twin, document, [question, question[:5]], max_tokens=4, repeats=2)
    assert list(frame.variant.unique()) == list(VARIANTS)
    assert len(frame) == 2 * len(VARIANTS)
    exact = frame[~frame.variant.isin(["one batch", "threads, one context"])]
    assert exact.same_tokens.all()
    assert studies.guards(frame, "twin").get_label()
    assert twin.guard is before  # they are put back
    assert [ctx for ctx in twin._contexts if ctx._free.alive] == []


def test_one_trial_of_each_outcome(monkeypatch, twin):
    """What a process without a guard can come to, and what is said of it."""
    done = [subprocess.CompletedProcess("", *end) for end in ((-signal.SIGSEGV, ""), (0, "wrong answers\n"))]
    done += [subprocess.TimeoutExpired("", 20), subprocess.CompletedProcess("", 0, "right by luck\n")]
    monkeypatch.setattr(guards.subprocess, "run", Mock(side_effect=done))
    trials = guards.trials_without_guard(twin, [1], [[2]], trials=4)
    assert list(trials.outcome) == ["crashed", "wrong answers", "hung", "right by luck"]
    assert set(trials.outcome) == set(guards.OUTCOMES)
    assert trials.how[1] == "SIGSEGV"


def test_a_gpu_is_refused(twin, document, question, monkeypatch):
    monkeypatch.setattr(twin, "on_gpu", True)
    with pytest.raises(lab.SwarmKVError):
        studies.compare_guards(twin, document, [question])
