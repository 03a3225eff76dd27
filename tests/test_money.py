"""Money: costs and break-evens by hand, and prices that all have a source."""

import math

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.money import prices as money

PREFILLS = pd.DataFrame({"model": ["m"], "nbytes": [2e9], "prefill_s": [12.0], "restore_s": [1.0]})
OFFERS = pd.DataFrame(
    [(1.0, 1.25, 0.1, None), (1.0, 2.0, 0.1, None), (1.0, None, 0.1, None), (1.25, None, 0.125, 4.5)],
    columns=["uncached", "cache_write", "cached_read", "storage_per_hour"],
)


def test_what_a_prefill_costs_and_its_reuse_saves():
    row = money.saved(PREFILLS, 3.6, reads=11).iloc[0]
    assert row[["prefill_usd", "saved_s", "saved_usd"]].tolist() == pytest.approx([0.012, 110, 0.11])
    assert money.saved(PREFILLS, 3.6, reads=1).saved_usd.item() == 0


def test_reads_that_pay_for_storage():
    """2 GB at 0.05 are 0.10 a month; a read saves 12 - 1 - 1 s at 0.001 per s."""
    row = money.reads_to_pay(PREFILLS, 3.6, 0.05, bytes_per_s=2e9).iloc[0]
    assert row[["storage_usd", "saved_usd", "reads"]].tolist() == pytest.approx([0.1, 0.01, 10])
    assert money.reads_to_pay(PREFILLS, 3.6, 0.05, bytes_per_s=1e8).reads.item() == math.inf  # it loads for 20 s
    with pytest.raises(lab.SwarmKVError, match="usd_per_hour=0"):
        money.reads_to_pay(PREFILLS, 0, 0.05)


def test_the_first_read_that_costs_less_with_a_cache():
    assert money.pays_from(OFFERS).tolist() == [2, 3, 2, 6]
    assert money.pays_from(OFFERS, hours=2).tolist() == [2, 3, 2, 10]
    costs = money.cost_of_reads(OFFERS.assign(offer=range(4)), range(1, 20))
    cheaper = costs[costs.share < 1 - 1e-9].groupby("offer").reads.min()
    assert cheaper.tolist() == money.pays_from(OFFERS).tolist()  # counted out, not solved


def test_a_larger_model_takes_longer_in_proportion_to_its_parameters():
    table = money.predicted_prefills(["qwen2.5-7b", "llama-3.1-70b"], 1000, "qwen2.5-7b", 500.0)
    assert table.prefill_s.tolist() == pytest.approx([2, 2 * 70.6 / 7.62])
    assert table.nbytes[0] == lab.geometry("qwen2.5-7b").snapshot_bytes(1000)


def test_what_was_measured_of_a_prefill():
    sources = [studies.measurements(name) for name in ("reference", "gpu/qwen2.5-7b")]
    cpu, gpu = money.measured_prefills(source.bench for source in sources).itertuples()
    assert cpu.prefill_s == pytest.approx(sources[0].bench["summary"]["naive"]["prefill_ms"] / 1e3, rel=1e-6)
    runs = pd.read_csv(sources[1].folder / "bench.csv")  # raw: a beat says nothing on a GPU
    assert gpu.prefill_s == pytest.approx(runs.prefill_ms[runs.strategy == "naive"].median() / 1e3)
    assert (gpu.machine, cpu.nbytes) == ("NVIDIA H200", sources[0].bench["restore"]["bytes"])


def test_every_price_has_a_source_and_a_day():
    for table in (money.prices(), money.machine_prices()):
        assert table.source.str.startswith("https://").all()
        assert pd.to_datetime(table.read, format="%Y-%m-%d").notna().all()
    offers = money.prices()
    assert (offers.cached_read < offers.uncached).all()
    assert (offers.cache_write.dropna() >= offers.uncached[offers.cache_write.notna()]).all()
