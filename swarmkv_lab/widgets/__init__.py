"""Widgets: explorers for a notebook. They only show; every number is the package's own."""

from swarmkv_lab.widgets.inspector import SnapshotInspector, snapshot_inspector
from swarmkv_lab.widgets.latency import LatencyExplorer, latency_explorer
from swarmkv_lab.widgets.race import Race, race
from swarmkv_lab.widgets.sizing import SizingExplorer, sizing_explorer
from swarmkv_lab.widgets.stream import Stream, stream

__all__ = [
    "LatencyExplorer",
    "Race",
    "SizingExplorer",
    "SnapshotInspector",
    "Stream",
    "latency_explorer",
    "race",
    "sizing_explorer",
    "snapshot_inspector",
    "stream",
]
