"""SwarmKV Lab: prefill a document once, fan its KV cache out to many agents, and measure what that saves."""

from swarmkv_lab.analysis.article import table as article_table
from swarmkv_lab.analysis.costmodel import CostModel, held_out
from swarmkv_lab.analysis.divergence import kl_divergence
from swarmkv_lab.analysis.measurements import measurements
from swarmkv_lab.cli.snapshots import describe
from swarmkv_lab.errors import (
    ContextBudgetError,
    DecodeError,
    ModelNotFoundError,
    SnapshotCorruptError,
    SnapshotMismatchError,
    SwarmKVError,
    refused,
)
from swarmkv_lab.fanout.best_of import best_of
from swarmkv_lab.fanout.documents import load_agents, load_document
from swarmkv_lab.fanout.fan_out import fan_out, shared_prefix
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.spec import load_pipeline
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.llama import Context, LlamaGuard, Model, Sampling
from swarmkv_lab.llama.loading import load_model, model_path
from swarmkv_lab.measure.bench import bench, steady_rows
from swarmkv_lab.measure.fidelity import kv_type_fidelity
from swarmkv_lab.measure.grid import race, sweep
from swarmkv_lab.measure.guards import compare_guards, without_guard
from swarmkv_lab.measure.kv import weigh
from swarmkv_lab.measure.limits import restore_against_memcpy
from swarmkv_lab.measure.positions import position_error
from swarmkv_lab.measure.profiles import profile
from swarmkv_lab.measure.provenance import caption
from swarmkv_lab.measure.tuning import fastest_settings, tune
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.sizing.memory import agents_by_budget, catalogue_bytes
from swarmkv_lab.sizing.twins import twin
from swarmkv_lab.snapshot.prefix_cache import prefill
from swarmkv_lab.snapshot.rope import Rope
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_lab.snapshot.state import SequenceState

__version__ = "0.1.0"

__all__ = [
    "STRATEGIES",
    "Agent",
    "Context",
    "ContextBudgetError",
    "CostModel",
    "DecodeError",
    "KVGeometry",
    "KVSnapshot",
    "LlamaGuard",
    "Model",
    "ModelNotFoundError",
    "Pipeline",
    "Rope",
    "Run",
    "Sampling",
    "SequenceState",
    "SnapshotCorruptError",
    "SnapshotMismatchError",
    "SwarmKVError",
    "agents_by_budget",
    "article_table",
    "bench",
    "best_of",
    "caption",
    "catalogue",
    "catalogue_bytes",
    "compare_guards",
    "describe",
    "fan_out",
    "fastest_settings",
    "geometry",
    "held_out",
    "kl_divergence",
    "kv_type_fidelity",
    "load_agents",
    "load_document",
    "load_model",
    "load_pipeline",
    "measurements",
    "model_path",
    "position_error",
    "prefill",
    "profile",
    "race",
    "refused",
    "restore_against_memcpy",
    "shared_prefix",
    "steady_rows",
    "sweep",
    "tune",
    "twin",
    "weigh",
    "without_guard",
]
