"""The names that timelines use, of lanes, strategies and phases."""

PREFIX = "prefix"  # the lane of the work done once for all agents
BASELINE = "naive"  # the strategy that all others are compared with
ACTIVATION = ("context", "prefill", "copy", "restore", "share")  # an agent's phases until its context holds the prefix
