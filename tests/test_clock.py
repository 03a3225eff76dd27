"""Times in beats: a machine that changes its speed, simulated, changes no number that is corrected."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout import recorder
from swarmkv_lab.fanout.report import metrics, metrics_in_beats
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_studies.common.clock import corrected, in_beats
from swarmkv_studies.common.metronome import Metronome, metronome
from swarmkv_studies.common.summary import share_of_bound


def test_beats_of_a_steady_machine():
    assert in_beats([0, 5, 40, 100], [(10, 8.0), (50, 8.0)]).tolist() == [0, 0.625, 5, 12.5]
    assert in_beats([0, 20], [(3, 4.0)]).tolist() == [0, 5]


def test_beats_of_a_machine_that_gets_slower():
    beats = [(0, 10.0), (100, 20.0)]  # the rate falls from 0.1 to 0.05 per ms
    assert in_beats([100], beats) == pytest.approx([7.5])
    assert in_beats([50], beats) == pytest.approx([50 * (0.1 + 0.075) / 2])
    assert in_beats([120], beats) == pytest.approx([7.5 + 1])  # it stays as slow as it was last
    assert np.diff(in_beats(np.linspace(0, 300, 50), beats)).min() > 0


class Machine:
    """A clock, and work that takes longer on it at one time than at another; its speed changes with a period of 9 s."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(recorder.time, "perf_counter", lambda: self.now)

    def work(self, amount):
        start = self.now
        for _ in range(100):
            self.now += amount / 100 * (1.5 + np.sin(self.now * 2 * np.pi / 9))
        return 1e3 * (self.now - start)


def prefill_and_answer(machine, prefills):
    """A run in which every chunk of work is preceded by a chance for a beat: (raw, in beats)."""
    record = recorder.Recorder(lambda: machine.work(0.02))
    for agent in range(prefills):
        record.tick()
        with record.phase([str(agent)], "prefill"):
            for _ in range(20):
                record.tick()
                machine.work(0.2)
    record.tick(0)
    branches = [Branch(str(agent), np.array([1]), 1) for agent in range(prefills)]
    return metrics(record.spans, branches), metrics_in_beats(record.spans, branches, record.beats)


def test_a_ratio_that_a_changing_speed_bends_is_straight_in_beats(monkeypatch):
    machine = Machine(monkeypatch)
    raw, beats = [], []
    for _ in range(6):
        (four, four_beats), (one, one_beats) = prefill_and_answer(machine, 4), prefill_and_answer(machine, 1)
        raw.append(four["end_to_end_ms"] / one["end_to_end_ms"])
        beats.append(four_beats["end_to_end_beats"] / one_beats["end_to_end_beats"])
        machine.work(1.3)
    assert max(raw) / min(raw) > 1.2
    assert beats == pytest.approx([4.0] * 6, rel=0.01)


def test_beats_are_off_the_runs_clock(monkeypatch):
    machine = Machine(monkeypatch)
    (with_beats, _), started = prefill_and_answer(machine, 2), machine.now
    assert with_beats["end_to_end_ms"] < 1e3 * started  # the machine worked longer than the run says
    spans = recorder.Recorder().spans
    assert metrics_in_beats(spans, [], []) == {}


def test_corrected_times_are_beats_at_the_median_speed():
    runs = pd.DataFrame({"end_to_end_ms": [100.0, 300.0, 90.0], "end_to_end_beats": [10.0, 20.0, np.nan],
                         "other_ms": [10.0, 30.0, 9.0], "beat_ms": [10.0, 15.0, np.nan]})  # fmt: skip
    right = corrected(runs)
    assert right.end_to_end_ms.tolist() == [125, 250, 90]  # a run without beats stays as it is
    assert right.other_ms.tolist() == [12.5, 25, 9]
    assert right.beat_ms.tolist()[:2] == [10, 15]
    pd.testing.assert_frame_equal(corrected(right), right)
    assert corrected(runs[["end_to_end_ms"]]).equals(runs[["end_to_end_ms"]])


def test_a_sweep_counts_every_time_in_beats(twin, document):
    how = {"agents": [[1, 2], [3]], "max_tokens": 2, "progress": False}
    frame = studies.sweep(twin, document, depths=[64], n_agents=[2], repeats=1, strategies=["naive", "batched"], **how)
    times = [name for name in frame if name.endswith("_ms") and name != "beat_ms"]
    for name in times:
        ratio = frame[name] / (frame[name.replace("_ms", "_beats")] * frame.beat_ms)
        assert ratio.dropna().between(0.2, 5).all(), name
    assert frame.end_to_end_ms.to_numpy() == pytest.approx((frame.end_to_end_beats * frame.beat_ms).to_numpy())


def test_a_metronome_leaves_nothing_behind_and_no_trace(twin, document, question):
    plain = lab.fan_out(twin, document, [question], "naive", max_tokens=3)
    assert "end_to_end_beats" not in plain.metrics
    with Metronome(twin, 64) as beat:
        assert beat() > 0
        contexts = len(twin._contexts)
    with pytest.raises(lab.SwarmKVError, match="closed"):
        beat()
    assert contexts >= 1


def test_on_a_gpu_times_in_beats_are_the_times_as_measured(twin, document, monkeypatch):
    """A beat between two decodes would wait for the first one, off the run's clock."""
    monkeypatch.setattr(twin, "on_gpu", True)
    contexts = len(twin._contexts)
    with metronome(twin, 64) as beat:
        assert (beat(), len(twin._contexts)) == (1.0, contexts)
    how = {"agents": [[1, 2], [3]], "max_tokens": 2, "progress": False}
    frame = studies.sweep(twin, document, depths=[64], n_agents=[2], repeats=1, **how)
    for name in [name for name in frame if name.endswith("_ms") and name != "beat_ms"]:
        np.testing.assert_allclose(frame[name.replace("_ms", "_beats")], frame[name])
    assert corrected(frame).end_to_end_ms.to_numpy() == pytest.approx(frame.end_to_end_ms.to_numpy())


def test_the_share_of_the_bound_by_hand():
    """Two benches of three rounds; the machine is twice as slow while shared runs in the second."""
    rows = []
    for repeat in range(6):
        for strategy, prefill, total in (("naive", 100.0, 4 * 110.0), ("shared", 100.0, 100 + 4 * 10.0)):
            slow = 2 if repeat >= 3 and strategy == "shared" else 1
            times = {"prefill": prefill, "activation": 100.0, "branch": 4.0, "ttft": 105.0, "last_ttft": 105.0}
            times |= {"last_first_token": total, "generate": 5.0, "end_to_end": total}
            row = {f"{name}_ms": ms * slow for name, ms in times.items()}
            row |= {f"{name}_beats": ms / 7 for name, ms in times.items()}
            rows.append(
                {"repeat": repeat, "strategy": strategy, "depth": 9, "n_agents": 4, "beat_ms": 7.0 * slow} | row
            )
    share = share_of_bound(pd.DataFrame(rows), rounds=3)
    assert share[["depth", "n_agents", "bench"]].to_numpy().tolist() == [[9, 4, 0], [9, 4, 1]]
    assert share.raw.tolist() == pytest.approx([1, 0.5])  # 440 / 140 is the bound itself
    assert share.corrected.tolist() == pytest.approx([1, 1])
