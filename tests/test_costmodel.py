"""The cost model: it finds the parts that runs were made of, and predicts what it has not seen."""

import itertools

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies

DEPTHS, AGENTS = (256, 512, 1024, 2048, 4096), (1, 2, 4, 8)


def made_up(depth: int, n: int, strategy: str) -> dict:
    """A run whose parts follow the formulas exactly."""
    naive, packed = strategy == "naive", strategy == "batched"
    prefill = 20 + 3 * depth + 5e-4 * depth**2
    context = 7 + 4e-3 * depth if strategy in ("naive", "swarmkv") else 0.0
    copies = {"naive": 0, "swarmkv": 4e-3, "pooled": 2e-3, "shared": 7e-5, "batched": 7e-5}[strategy] * depth
    capture = 2e-3 * depth if strategy in ("swarmkv", "pooled") else 0.0
    branch, answer = (k * (60 + 0.02 * depth) for k in (1, 2))
    if packed:
        branch, answer = (k * (20 + 30 * n + 0.02 * n * depth) for k in (1, 2))
    activation = context + copies + (prefill if naive else 0)
    each = branch + 0.5 + answer
    total = (0 if naive else prefill + capture) + n * activation + (1 if packed else n) * each + 9
    return {
        "strategy": strategy, "packed": packed, "depth": depth, "n_agents": n,
        "prefill_ms": prefill, "capture_ms": capture,
        "context_ms": context, "activation_ms": activation, "branch_ms": branch, "sample_ms": 0.5,
        "generate_ms": answer, "last_ttft_ms": total - answer, "end_to_end_ms": total,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    return pd.DataFrame([made_up(*point) for point in itertools.product(DEPTHS, AGENTS, lab.STRATEGIES)])


@pytest.mark.parametrize(("depth", "n"), [(300, 3), (3501, 16), (7000, 2), (64, 1)])
def test_points_that_were_not_measured(runs, depth, n):
    model = studies.CostModel.fit(runs)
    predicted = model.predict([depth], [n]).set_index("strategy")
    for strategy in lab.STRATEGIES:
        truth = made_up(depth, n, strategy)
        for metric in ("last_ttft_ms", "end_to_end_ms", "activation_ms"):
            assert predicted.loc[strategy, metric] == pytest.approx(truth[metric], rel=1e-3), (strategy, metric)
    naive, shared = (made_up(depth, n, s)["end_to_end_ms"] for s in ("naive", "shared"))
    assert model.speedup([depth], [n], "shared")[0, 0] == pytest.approx(naive / shared, rel=1e-3)


def test_the_ideal_is_naives_own(runs):
    model = studies.CostModel.fit(runs)
    run = made_up(2048, 4, "naive")
    p, b = run["activation_ms"], run["branch_ms"] + run["sample_ms"] + run["generate_ms"]
    assert model.ideal([256, 2048], [2, 4])[1, 1] == pytest.approx(4 * (p + b) / (p + 4 * b), rel=1e-3)
    assert model.ideal([2048], [1])[0, 0] == pytest.approx(1)


def test_copies_stop_paying_where_a_prefill_is_as_fast_as_they_are(runs):
    """swarmkv's capture, copies and restores: 2e-3 d + N 4e-3 d; naive's rest is the same, and N - 1 prefills saved."""
    model = studies.CostModel.fit(runs)
    slow, fast = (model.speedup([3501], [2], "swarmkv", speed)[0, 0] for speed in (98_000, 102_000))
    assert slow > 1 > fast  # 1e3 / 100,000 = 10e-3 ms per token
    assert model.speedup([3501], [2], "swarmkv", 1.0)[0, 0] == pytest.approx(2, rel=1e-3)
    even = [model.speedup([3501], [1], "swarmkv", speed)[0, 0] for speed in (10, 1000, 100_000)]
    assert max(even) < 1  # a snapshot without a use never pays
    with pytest.raises(lab.SwarmKVError):
        model.speedup([3501], [2], "swarmkv", 0)
    figure = studies.break_even({"made up": runs})
    assert "below a prefill of 100,000 tokens" in figure.get_label()


def test_no_part_takes_less_than_no_time(runs):
    noisy = runs.assign(prefill_ms=runs.prefill_ms - 600)  # a parabola through this would start far below zero
    model = studies.CostModel.fit(noisy)
    assert all((c >= 0).all() for c in model.coefficients.values())
    assert (model.predict([1, 10, 100], [1, 64])[["last_ttft_ms", "end_to_end_ms"]] >= 0).all(axis=None)


def test_held_out_points_are_predicted_by_a_model_that_has_not_seen_them(runs):
    for table in (studies.held_out(runs), studies.held_out(runs, by="depth"), studies.held_out(runs, by="n_agents")):
        assert len(table) == len(runs)
        assert table[["error_last_ttft_ms", "error_end_to_end_ms"]].abs().max(axis=None) < 1e-2
    spoilt = runs.assign(end_to_end_ms=runs.end_to_end_ms.where(runs.depth != 1024, runs.end_to_end_ms * 3))
    errors = studies.held_out(spoilt, by="depth").set_index("depth").error_end_to_end_ms
    assert errors[1024].max() < -0.5  # had it seen them, it would follow them


def test_the_reference_grid_is_predicted_within_ten_percent():
    grid = studies.measurements("reference").grid
    errors = studies.held_out(grid)[["error_last_ttft_ms", "error_end_to_end_ms"]].abs()
    assert (errors.median() < 0.10).all(), errors.median()
    whole_depths = studies.held_out(grid, by="depth")[["error_last_ttft_ms", "error_end_to_end_ms"]].abs()
    assert (whole_depths.median() < 0.15).all(), whole_depths.median()


def test_too_little_to_fit(runs):
    for some in (runs[runs.depth < 1000], runs[runs.strategy != "naive"], runs[:0], runs[runs.n_agents == 2]):
        with pytest.raises(lab.SwarmKVError):
            studies.CostModel.fit(some)


def test_what_cannot_be_predicted(runs):
    model = studies.CostModel.fit(runs[runs.strategy != "pooled"])
    assert model.strategies == ["naive", "swarmkv", "shared", "batched"]
    with pytest.raises(lab.SwarmKVError, match="pooled"):
        model.predict([100], [2], ["pooled"])
    with pytest.raises(lab.SwarmKVError):
        model.predict([0], [2])
