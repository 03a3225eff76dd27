"""Money: what a prefill costs, and from how many reads on a kept snapshot or a provider's cache is cheaper.

A read is one use of the document. Prices are published (data/prices.csv, data/machine_prices.csv) and change; times are
measured, or predicted from measured ones; all costs are predicted from both. USD, seconds, bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.files import DATA
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_studies.common.measurements import where

_HOUR = 3600.0


def prices() -> pd.DataFrame:
    """What providers ask for input tokens, a row per offer, USD per million tokens; columns: data/README.md."""
    return pd.read_csv(DATA / "prices.csv")


def machine_prices() -> pd.DataFrame:
    """Prices of machines (USD per hour) and of storage (USD per GB and month), by name; columns: data/README.md."""
    return pd.read_csv(DATA / "machine_prices.csv", index_col="name")


def usd_per_hour(prefills: pd.DataFrame, rents: pd.DataFrame) -> pd.Series:
    """What the machine of each prefill costs, as the price list says of its name, or else of "two cores"."""
    return prefills.machine.map(rents.usd).fillna(rents.usd["two cores"])


def measured_prefills(reports: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """What a bench measured of its document, a row per report.

    Columns model, machine, tokens, nbytes (of the snapshot), prefill_s and restore_s (into a context that is there):
    medians.
    """
    rows = []
    for report in reports:
        env, runs = report["environment"], pd.DataFrame(report["runs"])
        times = runs.groupby("strategy").median(numeric_only=True)
        rows.append({
            "model": env["model"], "machine": where(env),
            "tokens": int(runs.depth.iloc[0]), "nbytes": report["restore"]["bytes"],
            "prefill_s": times.prefill_ms["naive"] / 1e3, "restore_s": times.activation_ms["pooled"] / 1e3,
        })  # fmt: skip
    return pd.DataFrame(rows)


def predicted_prefills(models: Sequence[str], tokens: int, like: str, tokens_per_s: float) -> pd.DataFrame:
    """The same columns for models of the catalogue on a machine where the prefill of ``like`` was measured.

    A token takes 2 operations per parameter (attention left out), and all models reach as many operations per second.
    So this holds for dense models, in the same weight format. restore_s is 0.
    """
    known = catalogue().billions
    seconds = whole_number("tokens", tokens, 1) / _above_0("tokens_per_s", tokens_per_s)
    rows = [(name, tokens, geometry(name).snapshot_bytes(tokens), seconds * known[name] / known[like], 0.0)
            for name in models]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "tokens", "nbytes", "prefill_s", "restore_s"])


def saved(prefills: pd.DataFrame, usd_per_hour: float | Sequence[float], reads: int) -> pd.DataFrame:
    """What one prefill costs, and what its reuse saves: adds prefill_usd, saved_s and saved_usd.

    Of ``reads`` reads the first prefills and the others restore. usd_per_hour: one price, or one per row.
    """
    whole_number("reads", reads, 1)
    usd_per_s = np.asarray(usd_per_hour, float) / _HOUR
    saved_s = (reads - 1) * (prefills.prefill_s - prefills.restore_s)
    return prefills.assign(
        prefill_usd=prefills.prefill_s * usd_per_s, reads=reads, saved_s=saved_s, saved_usd=saved_s * usd_per_s
    )


def reads_to_pay(
    prefills: pd.DataFrame, usd_per_hour: float, usd_per_gb_month: float, bytes_per_s: float = math.inf
) -> pd.DataFrame:
    """From how many reads per month on a kept snapshot pays for its storage: adds storage_usd, saved_usd and reads.

    storage_usd is for a month, saved_usd for a read: a prefill's machine time, less that of loading the bytes at
    ``bytes_per_s`` and of restoring them. reads = storage_usd / saved_usd; infinite if loading takes longer than a
    prefill. Raises SwarmKVError for prices and speeds that are not above 0.
    """
    per_s = _above_0("usd_per_hour", usd_per_hour) / _HOUR
    storage = prefills.nbytes / 1e9 * _above_0("usd_per_gb_month", usd_per_gb_month)
    load_s = prefills.nbytes / _above_0("bytes_per_s", bytes_per_s)
    usd = (prefills.prefill_s - prefills.restore_s - load_s) * per_s
    reads = (storage / usd).where(usd > 0, math.inf)
    return prefills.assign(storage_usd=storage, saved_usd=usd, reads=reads)


def kept(prefills: pd.DataFrame, rents: pd.DataFrame, bytes_per_s: Sequence[float]) -> pd.DataFrame:
    """``reads_to_pay`` on every storage of ``rents`` (machine_prices) at every speed: adds storage and bytes_per_s."""
    tables = [
        reads_to_pay(rows, price, storage.usd, speed).assign(storage=name, bytes_per_s=speed)
        for price, rows in prefills.groupby(usd_per_hour(prefills, rents), sort=False)
        for name, storage in rents[rents.kind == "storage"].iterrows()
        for speed in bytes_per_s
    ]
    return pd.concat(tables, ignore_index=True)


def pays_from(offers: pd.DataFrame, hours: float = 1.0) -> pd.Series:
    """The fewest reads of a prefix that cost less with a provider's cache than without, by the offers' index.

    N reads cost N * uncached without it, and write + (N - 1) * cached + hours * storage with it: cheaper for
    N > 1 + (write - uncached + hours * storage) / (uncached - cached). A write without a price of its own costs what
    uncached tokens do. All reads fall into the cache's lifetime, and into ``hours``, if storage is billed.
    """
    write = offers.cache_write.fillna(offers.uncached)
    kept = offers.storage_per_hour.fillna(0.0) * hours
    more = (write - offers.uncached + kept) / (offers.uncached - offers.cached_read)
    return np.floor((1 + more).round(9)).astype(int) + 1  # rounded, as 4.5 / 1.125 is 4


def cost_of_reads(offers: pd.DataFrame, reads: Sequence[int], hours: float = 1.0) -> pd.DataFrame:
    """USD per million tokens of prefix for N reads: a row per offer and N, columns of ``offers``, reads, usd, share.

    usd: with the cache. share: of what the same reads cost without it.
    """
    counts = pd.DataFrame({"reads": [whole_number("reads", n, 1) for n in reads]})
    table = offers.merge(counts, how="cross")
    write, kept = table.cache_write.fillna(table.uncached), table.storage_per_hour.fillna(0.0) * hours
    usd = write + (table.reads - 1) * table.cached_read + kept
    return table.assign(usd=usd, share=usd / (table.reads * table.uncached))


def _above_0(name: str, value: float) -> float:
    if not value > 0:
        raise SwarmKVError(f"{name}={value!r:.40}: it must be above 0")
    return float(value)
