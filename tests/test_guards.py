"""Guards: the unguarded process comes to its end alone, and all guarded ways give the same answers."""

from contextlib import suppress

import psutil
import pytest
from matplotlib.figure import Figure

import swarmkv_lab as lab
from swarmkv_lab import figures
from swarmkv_lab.measure.guards import VARIANTS


@pytest.mark.real
def test_threads_without_a_guard_end_their_process_and_not_this_one(real, all_cores, monkeypatch, tmp_path):
    monkeypatch.setenv("SWARMKV_TEST", str(tmp_path))  # what it starts inherits this, also when it outlives it
    document = real.tokenize(lab.load_document("dossier"))[:200]
    questions = [real.ask(question) for question in list(lab.load_agents("dossier").values())[:2]]
    said = lab.without_guard(real, document, questions, rounds=50)
    assert said.startswith(("it died of SIG", "it ended with status", "it hung"))
    assert "survived" not in said
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SWARMKV_TEST") == str(tmp_path):
                left.append(process)
    assert left == []


def test_all_variants_answer_alike(twin, document, question):
    frame = lab.compare_guards(twin, document, [question, question[:5]], max_tokens=4, repeats=2)
    assert list(frame.variant.unique()) == list(VARIANTS)
    assert len(frame) == 2 * len(VARIANTS)
    exact = frame[~frame.variant.isin(["one batch", "threads, one context"])]
    assert exact.same_tokens.all()
    figure = figures.guards(frame, "twin")
    assert isinstance(figure, Figure)
    assert "x the tokens per second: " in figure.get_label()


def test_the_guards_are_put_back(twin, document, question):
    before = twin.guard
    lab.compare_guards(twin, document, [question, question], max_tokens=2, repeats=1)
    with twin.context(512) as ctx:
        assert ctx.guard is before
    assert [ctx for ctx in twin._contexts if ctx._free.alive] == []


def test_a_gpu_is_refused(twin, document, question, monkeypatch):
    monkeypatch.setattr(twin, "on_gpu", True)
    with pytest.raises(lab.SwarmKVError, match="n_gpu_layers=0"):
        lab.compare_guards(twin, document, [question])
