# The public names, and the file that each lives in.
# fmt: off
# isort: off
from . import analysis as analysis, cli as cli, cluster as cluster, errors as errors, fanout as fanout
from . import figures as figures, files as files
from . import llama as llama, measure as measure, peers as peers, sizing as sizing, snapshot as snapshot
from . import widgets as widgets
from .analysis.article import article_table as article_table
from .analysis.clock import corrected as corrected
from .analysis.costmodel import CostModel as CostModel, held_out as held_out
from .analysis.divergence import kl_divergence as kl_divergence
from .analysis.measurements import caption as caption, measurements as measurements
from .analysis.quality import accuracy as accuracy, differences as differences
from .analysis.questions import Question as Question, load_questions as load_questions
from .analysis.queueing import service_times as service_times, simulate_cluster as simulate_cluster
from .analysis.roofline import roofline as roofline
from .analysis.score import score as score
from .analysis.shipping import Document as Document, Link as Link, break_even_bandwidth as break_even_bandwidth
from .analysis.shipping import shipping as shipping
from .analysis.summary import share_of_bound as share_of_bound, steady_rows as steady_rows
from .errors import ContextBudgetError as ContextBudgetError, DecodeError as DecodeError
from .errors import ModelNotFoundError as ModelNotFoundError, SnapshotCorruptError as SnapshotCorruptError
from .errors import SnapshotMismatchError as SnapshotMismatchError, SwarmKVError as SwarmKVError, refused as refused
from .fanout.best_of import best_of as best_of
from .fanout.documents import load_agents as load_agents, load_document as load_document
from .fanout.fan_out import fan_out as fan_out, shared_prefix as shared_prefix
from .fanout.pipeline import Agent as Agent, Pipeline as Pipeline
from .fanout.run import Run as Run
from .fanout.spec import load_pipeline as load_pipeline
from .fanout.strategies import STRATEGIES as STRATEGIES
from .llama.context import Context as Context
from .llama.guard import LlamaGuard as LlamaGuard
from .llama.loading import load_model as load_model, model_path as model_path, requantize as requantize
from .llama.model import Model as Model
from .llama.sampling import Sampling as Sampling
from .measure.across import across_devices as across_devices
from .measure.bench import bench as bench
from .measure.codecs import codecs as codecs
from .measure.fidelity import kv_type_fidelity as kv_type_fidelity
from .measure.formats import weight_formats as weight_formats
from .measure.grid import race as race
from .measure.guards import compare_guards as compare_guards, without_guard as without_guard
from .measure.kv import measure_kv as measure_kv, weigh as weigh
from .measure.limits import load_against_read as load_against_read, restore_against_memcpy as restore_against_memcpy
from .measure.positions import position_error as position_error
from .measure.profiles import profile as profile
from .measure.roofline import peaks as peaks
from .measure.study import study as study
from .measure.sweep import sweep as sweep
from .measure.tuning import fastest_settings as fastest_settings, fastest_weights as fastest_weights, tune as tune
from .measure.windows import window_difference as window_difference
from .sizing.catalogue import catalogue as catalogue, geometry as geometry
from .sizing.full_size import full_size_twin as full_size_twin
from .sizing.geometry import KVGeometry as KVGeometry
from .sizing.memory import agents_by_budget as agents_by_budget, catalogue_bytes as catalogue_bytes
from .sizing.twins import twin as twin
from .snapshot.join import join as join
from .snapshot.prefill import prefill as prefill
from .snapshot.rope import Rope as Rope
from .snapshot.snapshot import KVSnapshot as KVSnapshot, describe as describe
from .snapshot.state import SequenceState as SequenceState

__version__: str
