"""Profiles: quick for a first look, full for the article's length and the committed results, smoke for the tests."""

import os
from dataclasses import dataclass

from swarmkv_lab.errors import SwarmKVError, not_one_of
from swarmkv_studies.common.rounds import Round, rounds

PROFILE_VARIABLE = "SWARMKV_PROFILE"


@dataclass(frozen=True)
class Profile:
    """How much to measure."""

    name: str
    depth: int
    """tokens of the document that a notebook reads"""
    bench_depth: int
    """tokens of the document in the article's experiment"""
    repeats: int
    live_repeats: int
    """repeats in a notebook, where a reader waits"""
    max_tokens: int
    """tokens of an answer"""
    grid: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]
    """(depths, agents, repeats) of each part of the grid of strategies"""
    peers: tuple[int, int]
    """depth and repeats of the comparison with peers"""
    pipeline: int
    """tokens of the document that a graph of agents reads"""
    notebooks: tuple[str, ...] = ()
    """those that reproduce executes, unless it is told otherwise; none: all"""
    positions: int = 1024
    """tokens of the document whose positions are shifted"""
    live_depths: tuple[int, ...] = (64, 128, 256, 384)
    """depths of the grid that a notebook measures while a reader waits; a cost model needs three"""

    @property
    def rounds(self) -> list[Round]:
        """The grid's rounds, one part after the other."""
        return [this for depths, n_agents, repeats in self.grid for this in rounds(depths, n_agents, repeats)]


_SMOKE = (((32, 64, 128), (1, 2), 1),)
_QUICK = (((128, 256, 512), (1, 4), 1),)
# Most of the time is naive's prefills, so the deepest point is measured with the most agents alone; bench has two.
_FULL = (((256, 1024), (1, 2, 4, 8), 8), ((512,), (2, 8), 8), ((3501,), (8,), 8))
# smoke: that it runs, not how fast. full: eight rounds, for quartiles that mean something where a machine changes its
# speed within minutes.
PROFILES = {
    p.name: p
    for p in (
        Profile(
            "quick", 1280, 512, 3, 1, 16, _QUICK, (256, 1), 512,
            notebooks=("00_tour", "03_naive_vs_fanout"), positions=512,
        ),
        Profile(
            "smoke", 128, 128, 1, 1, 4, _SMOKE, (64, 1), 128,
            positions=128, live_depths=(16, 32, 48),
        ),
        Profile("full", 3501, 3501, 8, 2, 16, _FULL, (1024, 8), 5000),
    )
}  # fmt: skip


def profile(name: str | None = None) -> Profile:
    """The profile with this name; by default that of $SWARMKV_PROFILE, or quick. SwarmKVError for an unknown name."""
    name = name or os.environ.get(PROFILE_VARIABLE, "quick")
    if name not in PROFILES:
        raise SwarmKVError(f"profile {not_one_of(name, PROFILES)}")
    return PROFILES[name]
