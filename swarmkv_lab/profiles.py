"""Profiles: quick for a first look and for CI, full for the article's length and the committed outputs."""

import os
from dataclasses import dataclass

from swarmkv_lab.errors import SwarmKVError

PROFILE_VARIABLE = "SWARMKV_PROFILE"


@dataclass(frozen=True)
class Profile:
    """How much to measure."""

    name: str
    depth: int
    """tokens of the document"""
    repeats: int
    max_tokens: int
    """tokens of an answer"""


PROFILES = {p.name: p for p in (Profile("quick", 1024, 3, 16), Profile("full", 3501, 3, 16))}


def profile(name: str | None = None) -> Profile:
    """The profile of that name, of $SWARMKV_PROFILE, or quick."""
    name = name or os.environ.get(PROFILE_VARIABLE, "quick")
    if name not in PROFILES:
        raise SwarmKVError(f"profile {name!r} is not one of {', '.join(PROFILES)}")
    return PROFILES[name]
