"""Hosted models: what their prompt caches ask, and from how many reads on each costs less than reading without it."""

import numpy as np
import pandas as pd

from swarmkv_lab.files import DATA


def hosted_prices(hours: float = 1.0) -> pd.DataFrame:
    """Published prices of data/prices.csv, USD per million input tokens, and a column ``pays_from``: reads of a prefix.

    N reads cost N u without a cache and w + (N - 1) r + h s with it (u uncached, w write, r read, s storage for each of
    so many hours): less for N > 1 + (w - u + h s) / (u - r). A write without a price of its own costs what uncached
    tokens do.
    """
    offers = pd.read_csv(DATA / "prices.csv")
    write, kept = offers.cache_write.fillna(offers.uncached), offers.storage_per_hour.fillna(0.0) * hours
    more = (write - offers.uncached + kept) / (offers.uncached - offers.cached_read)
    return offers.assign(pays_from=np.floor((1 + more).round(9)).astype(int) + 1)  # rounded, as 4.5 / 1.125 is 4
