"""sweep on disk: every run is kept as it is measured, and the same call goes on after whatever stopped it."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.common import rounds as grid

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
    settings = {"kv_type": ("bf16", "f32"), "progress": False}
    first = measured(**settings, repeats=1)
    pd.testing.assert_frame_equal(measured(**settings | {"progress": True}, repeats=1), first, check_dtype=False)


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
