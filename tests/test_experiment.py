"""fan_out, bench and sweep: budgets before decodes, interleaving, ratios within rounds, files that are gone on with."""

import json
import re
import time
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.program import table
from swarmkv_lab.fanout.fan_out import budget
from swarmkv_lab.fanout.outcome import kl_divergence
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common import rounds as grid
from swarmkv_studies.common.bench import bench
from swarmkv_studies.common.rounds import measure, plan, rounds
from swarmkv_studies.common.speedup import speedups, with_spread
from swarmkv_studies.common.summary import bench_text, busy
from swarmkv_studies.naive_vs_fanout.article_table import gpu_table, on_gpus


@pytest.mark.parametrize(("change", "message"), [
    *(({"agents": agents}, None) for agents in ([], "a question", {}, [[]], ["in words"], [[1, 999]])),
    ({"tokens": []}, None),
    ({"strategy": "magic"}, "'magic'"),
    ({"max_tokens": -1}, "-1"),
    ({"n_ctx": 340}, "300 .* 9 .* 32 .* 341 .*340"),
    ({"n_ctx": 381, "strategy": "batched"}, "82 .* 382 .*381"),
    ({"strategy": "batched", "agents": [[1]] * 256, "max_tokens": 0}, "256.* 255"),
    ({"max_tokens": 4000}, "4,309 .* 4,096"),
])  # fmt: skip
def test_bad_input_is_refused_before_any_decode(twin, document, question, monkeypatch, change, message):
    monkeypatch.setattr(lab.Context, "decode_many", Mock(side_effect=AssertionError("something was decoded")))
    with pytest.raises(lab.SwarmKVError, match=message):
        lab.fan_out(twin, **{"tokens": document, "agents": [question, question]} | change)


def test_as_many_positions_as_the_model_was_trained_for(twin):
    how = (twin, lab.STRATEGIES["naive"], 4000, {"short": 3, "long": 90})
    assert budget(*how, 6, ContextSettings()).n_ctx == 4096 == twin.n_ctx_train
    with pytest.raises(lab.ContextBudgetError, match=r"4,097 .* 4,096"):
        budget(*how, 7, ContextSettings())


def test_prompts_go_round_when_agents_outnumber_them(twin, document, question):
    once = rounds([20], [5], 1)
    asked = plan(twin, document, once, ["shared"], agents={"x": question, "y": question[:2]}, max_tokens=1)
    (_, run, _), *_ = measure(asked)
    assert list(run.agents.agent) == ["x", "y", "x 2", "y 2", "x 3"]


@pytest.mark.parametrize("change", [
    {"depths": [301]}, {"depths": []}, {"repeats": 0}, {"n_agents": [0]}, {"strategies": []},
    {"strategies": ["naive", "nope"]},
])  # fmt: skip
def test_grids_that_make_no_sense(twin, document, question, change):
    how = {"depths": [10], "n_agents": [1], "strategies": ["naive"], "agents": [question]} | change
    with pytest.raises(lab.SwarmKVError, match=r"301.* 300" if change.get("depths") else None):
        studies.sweep(twin, document, **how)


def test_bench_reports_ratios_within_rounds(twin, document, question):
    report, runs = bench(
        twin, document, depth=200, n_agents=2, strategies=list(lab.STRATEGIES), repeats=2, max_tokens=2,
        agents=[question, question[:4]],
    )  # fmt: skip
    assert len(report["runs"]) == len(runs) == 10
    assert {"environment", "runs", "summary", "restore"} == set(report)
    naive, shared = report["summary"]["naive"], report["summary"]["shared"]
    frame = pd.DataFrame(report["runs"])
    ends = frame.pivot_table("end_to_end_ms", "repeat", "strategy")
    assert naive["end_to_end_speedup"] == 1
    assert shared["end_to_end_speedup"] == pytest.approx((ends.naive / ends.shared).median())
    assert shared["end_to_end_ms"] == pytest.approx(ends.shared.median())
    assert (shared["rounds"], shared["max_abs_logit_diff"], shared["same_tokens"]) == (2, 0, True)
    assert 1 < naive["end_to_end_ideal"] <= 2
    assert len(report["runs"][0]["agents"]) == 2
    assert "\nshared " in bench_text(report)
    assert "10,275 ms" in table(studies.article_table(report))


def test_bench_without_naive_has_no_speedups(twin, document, question):
    report, _ = bench(twin, document, depth=50, n_agents=1, strategies=["shared"], repeats=1, agents=[question])
    assert report["summary"]["shared"]["end_to_end_speedup"] is None
    with pytest.raises(lab.SwarmKVError):
        studies.article_table(report)


def test_a_speedup_is_the_median_of_ratios_within_rounds():
    """The machine is three times as slow from the second round on: no ratio of medians is near any round's."""
    rounds = ((200, 100), (630, 300), (660, 300), (600, 300), (690, 300))
    runs = pd.DataFrame([
        {"depth": 9, "n_agents": 2, "repeat": i, "strategy": name, "end_to_end_ms": ms}
        for i, pair in enumerate(rounds) for name, ms in zip(("naive", "shared"), pair, strict=True)
    ])  # fmt: skip
    row = speedups(runs).loc[(9, 2, "shared")]
    assert (row.low, row["median"], row.high, row.rounds) == pytest.approx((2, 2.1, 2.2, 5))
    assert with_spread(row) == "2.10x (2.00 to 2.20)"
    alone = runs.drop(index=8)  # a round in which naive is missing has no ratio
    assert speedups(alone).rounds[(9, 2, "shared")] == 4
    assert speedups(runs[runs.strategy == "shared"]).empty
    for load, said in ((0.3, "3.45 times"), (5.0, "5.0")):  # how busy the machine was
        assert said in busy({"environment": {"cores": 2, "load": load}, "runs": runs.to_dict("records")})
    assert busy({"environment": {"cores": 2, "load": 0.3}, "runs": runs[:2].to_dict("records")}) == ""


def test_kl_divergence_against_its_definition(rng):
    a, b = rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (a.astype(float), b.astype(float)))
    assert kl_divergence(a, b) == pytest.approx((p * np.log(p / q)).sum())
    assert kl_divergence(a, a) == 0
    assert kl_divergence(a + 100, a) == pytest.approx(0, abs=1e-9)


def test_a_watcher_sees_the_run_grow_and_its_looking_is_not_measured(twin, document, question, monkeypatch):
    seen, looked, clock = [], [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + looked[0])

    def watch(run):
        seen.append(run.timeline)
        looked[0] += 1e6  # seconds, by the clock that the run goes by

    run = lab.fan_out(twin, document, [question] * 2, "naive", max_tokens=4, n_batch=64, callback=watch)
    assert len(seen) == 2 * (5 + 1 + 3)  # before each llama_decode: chunks of the document, the question, the answer
    assert [len(frame) for frame in seen] == sorted(len(frame) for frame in seen)
    assert (seen[3].phase.iloc[-1], seen[3].agent.iloc[-1]) == ("prefill", "agent 1")
    assert 0 < run.metrics["end_to_end_ms"] < 1e9  # not one of the looks


def test_the_article_table_has_the_second_agent_by_itself():
    """Of a bench whose second agent waits 10 ms and whose first waits 90; the machine is slower in the second round."""

    def run(strategy, repeat, activations, total):
        agents = [{"activation_ms": ms, "branch_ms": 10.0} for ms in activations]
        about = {"strategy": strategy, "repeat": repeat, "depth": 9, "n_agents": 2}
        return {**about, "prefill_ms": 2000.0 * (1 + repeat), "end_to_end_ms": total, "agents": agents}

    runs = [
        run("naive", 0, (2100, 2050), 4000.0), run("swarmkv", 0, (90, 10), 2100.0),
        run("naive", 1, (4200, 4100), 8000.0), run("swarmkv", 1, (180, 30), 4000.0),
    ]  # fmt: skip
    table = studies.article_table({"runs": runs})
    assert list(table.loc["end to end, two agents"]) == [
        "10,275 ms", "5,272 ms", "1.95x", "6,000 ms", "3,050 ms", "1.95x (1.93 to 1.98)"
    ]  # fmt: skip
    second = table.loc["second agent's activation"]
    assert list(second["published"]) == ["4,339 ms", "83 ms", "52.3x"]
    assert list(second["measured"]) == ["3,000 ms", "30 ms", "100x (100 to 100)"]  # 2,000 / (10 + 10), 4,000 / 40


def test_what_was_not_measured_on_a_gpu_is_said():
    assert "not measured" in gpu_table({"environment": {"gpu": False}}).GPU["here"]
    again = gpu_table(on_gpus()["qwen2.5-7b"].bench)
    assert list(again.loc["here"]) == list(again.loc["qwen2.5-7b"])
    assert again["swarmkv: naive's logits"]["here"] == "bit by bit"


# -- a sweep on disk: every run is kept as it is measured, and the same call goes on after whatever stopped it

GRID = dict(depths=[10, 40], n_agents=[1, 3], strategies=["shared", "naive", "batched"], repeats=2, max_tokens=2)
RUNS = 2 * 2 * 3 * 2


@pytest.fixture
def measured(twin, document, question, tmp_path):
    """Call a sweep into one file, with changes to the grid."""
    path = tmp_path / "runs" / "grid.csv"

    def call(**change):
        return studies.sweep(twin, document, agents=[question, question[:3]], path=path, **GRID | change)

    call.path = path
    return call


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupt before the n-th measured run, as a reader does."""
    once = grid.fan_out

    def arm(n):
        left = iter([True] * n)

        def fan_out(*args, **kwargs):
            if kwargs.get("max_tokens") == 1 or next(left, False):  # 1: the warm-up
                return once(*args, **kwargs)
            raise KeyboardInterrupt

        monkeypatch.setattr(grid, "fan_out", fan_out)

    return arm


def test_the_file_holds_what_is_returned_in_turns(measured):
    frame = measured()
    turns = ["naive", "shared", "batched"]  # the reference first
    whole = [(i, depth, n, name) for i in (0, 1) for depth in (10, 40) for n in (1, 3) for name in turns]
    assert list(frame[["repeat", "depth", "n_agents", "strategy"]].itertuples(index=False, name=None)) == whole
    assert frame[["ttft_ms", "end_to_end_ms", "kv_bytes", "copied_bytes"]].notna().all(axis=None)
    pd.testing.assert_frame_equal(frame, pd.read_csv(measured.path), check_dtype=False)
    provenance = json.loads(measured.path.with_suffix(".json").read_text())
    assert {"time", "processor", "llama_cpp", "model_hash", "n_threads", "settings"} <= set(provenance)
    assert provenance["settings"]["max_tokens"] == 2


@pytest.mark.parametrize("n", [0, 1, 3, 11])
def test_an_interrupt_loses_no_complete_round_and_the_same_call_goes_on(measured, stop_after, n):
    stop_after(n)
    with pytest.raises(KeyboardInterrupt):
        measured()
    kept = pd.read_csv(measured.path) if measured.path.exists() else pd.DataFrame()
    assert len(kept) == n // 3 * 3  # three strategies a round
    stop_after(RUNS - len(kept))  # and not one run more than is missing
    frame = measured()
    assert len(frame) == RUNS
    if len(kept):
        pd.testing.assert_frame_equal(frame[: len(kept)], kept, check_dtype=False)
    assert frame.max_abs_logit_diff.notna().all()
    assert frame[frame.strategy == "shared"].same_tokens.all()
    assert not frame.duplicated(["repeat", "strategy", "depth", "n_agents"]).any()


def test_a_finished_sweep_is_read_not_measured(measured, stop_after):
    first = measured()
    stop_after(0)
    pd.testing.assert_frame_equal(measured(), first, check_dtype=False)
    assert len(measured(depths=[40], strategies=["shared"])) == 4  # a part of it


def test_without_a_path_an_interrupt_returns_what_there_is(twin, document, question, stop_after):
    stop_after(5)
    with pytest.warns(UserWarning, match=" 3 "):
        frame = studies.sweep(twin, document, agents=[question], **GRID)
    assert len(frame) == 3
    stop_after(0)
    with pytest.raises(KeyboardInterrupt):
        studies.sweep(twin, document, agents=[question], **GRID)


def test_the_phases_add_up_to_the_activation(measured):
    frame = measured(strategies=list(lab.STRATEGIES))
    parts = frame[["context_ms", "copy_ms", "restore_ms", "share_ms"]].sum(axis=1)
    parts += np.where(frame.strategy == "naive", frame.prefill_ms, 0)
    np.testing.assert_allclose(parts, frame.activation_ms, rtol=1e-9)


def test_a_round_that_lacks_a_strategy_is_measured_as_a_whole(measured, stop_after):
    """A ratio is of two times from the same moment: naive's is measured again with the others."""
    measured(strategies=["naive"])
    stop_after(RUNS)
    frame = measured()
    assert len(frame) == len(pd.read_csv(measured.path)) == RUNS
    assert frame.max_abs_logit_diff.notna().all()


def test_settings_that_json_writes_otherwise_are_the_same_again(measured):
    settings = {"kv_type": ("bf16", "f32"), "repeats": 1}
    first = measured(**settings)
    pd.testing.assert_frame_equal(measured(**settings), first, check_dtype=False)


@pytest.mark.parametrize("name", ["grid.json", "grid", "grid.csv.gz"])
def test_a_path_that_is_no_csv(twin, document, question, tmp_path, name):
    with pytest.raises(lab.SwarmKVError, match=r"ends in \.csv"):
        studies.sweep(twin, document, agents=[question], path=tmp_path / name, **GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "was", "now", "change"), [
    ("grid.csv", "", "", {"max_tokens": 3}),
    ("grid.csv", "", "", {"kv_type": "q8_0"}),
    ("grid.csv", "(?s).*", "a,b\n1,2\n", {}),
    ("grid.csv", "share_ms", "other", {}),
    ("grid.json", "(?s).*", "{", {}),
    ("grid.json", "(?s).*", '{"summary": 1}', {}),  # another's
])  # fmt: skip
def test_files_that_this_sweep_does_not_go_on_with(measured, name, was, now, change):
    measured(repeats=1)
    path = measured.path.parent / name
    changed = re.sub(was, now, path.read_text(), count=1)
    path.write_text(changed)
    with pytest.raises(lab.SwarmKVError, match=r"grid\.(csv|json)"):
        measured(**change)
    assert path.read_text() == changed
