# The public names, and the file that each lives in.
# fmt: off
# isort: off
from . import cluster as cluster, serve as serve
from .fanout.outcome import kl_divergence as kl_divergence
from .errors import ContextBudgetError as ContextBudgetError, DecodeError as DecodeError
from .errors import ModelNotFoundError as ModelNotFoundError, SnapshotCorruptError as SnapshotCorruptError
from .errors import SnapshotMismatchError as SnapshotMismatchError, SwarmKVError as SwarmKVError
from .fanout.documents import load_agents as load_agents, load_document as load_document
from .fanout.fan_out import fan_out as fan_out
from .fanout.pipeline import Agent as Agent, Pipeline as Pipeline
from .fanout.strategies import STRATEGIES as STRATEGIES
from .llama.context import Context as Context
from .llama.guard import LlamaGuard as LlamaGuard
from .llama.loading import load_model as load_model, model_path as model_path
from .llama.model import Model as Model
from .llama.sampling import Sampling as Sampling
from .sizing.catalogue import catalogue as catalogue, context_bytes as context_bytes, geometry as geometry
from .sizing.catalogue import snapshot_bytes as snapshot_bytes
from .sizing.geometry import KVGeometry as KVGeometry
from .snapshot.prefill import prefill as prefill
from .snapshot.snapshot import KVSnapshot as KVSnapshot
from .snapshot.state import SequenceState as SequenceState

__version__: str
