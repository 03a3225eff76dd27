# The names that notebooks use, and the file that each lives in.
# fmt: off
# isort: off
from .answers.quality import quality as quality
from .answers.questions import Question as Question, load_questions as load_questions
from .answers.score import score as score
from .answers.study import study as study
from .common.bench import bench as bench, restore_against_memcpy as restore_against_memcpy
from .common.costmodel import CostModel as CostModel, held_out as held_out
from .common.measurements import caption as caption, measurements as measurements
from .common.profiles import profile as profile
from .common.refused import refused as refused
from .common.rounds import race as race
from .common.style import save as save
from .common.speedup import speedups as speedups
from .common.sweep import sweep as sweep
from .common.twins import full_size_twin as full_size_twin, twin as twin
from .composing.figures import RightAligned as RightAligned, composed_quality_figure as composed_quality_figure
from .composing.figures import composed_seam_figure as composed_seam_figure, right_aligned as right_aligned
from .composing.quality import composed_quality as composed_quality, composed_seam as composed_seam
from .composing.study import composed_rounds as composed_rounds, composed_study as composed_study
from .composing.study import role_agents as role_agents
from .depth_and_agents.figures import break_even as break_even, latency as latency
from .depth_and_agents.figures import packing as packing, speedup_map as speedup_map, worth as worth
from .kv_sizing.explorer import sizing_explorer as sizing_explorer
from .kv_sizing.figures import bytes_per_token as bytes_per_token
from .kv_sizing.figures import memory_against_agents as memory_against_agents
from .kv_sizing.measured import measure_kv as measure_kv
from .kv_sizing.memory import agents_by_budget as agents_by_budget, bytes_by_model as bytes_by_model
from .llama_guard.figures import guards as guards
from .llama_guard.guards import compare_guards as compare_guards
from .many_machines.figures import ship_or_recompute as ship_or_recompute
from .many_machines.shipping import break_even_bandwidth as break_even_bandwidth
from .many_machines.figures import workers_timeline as workers_timeline
from .naive_vs_fanout.article_table import article_table as article_table
from .naive_vs_fanout.figures import lanes as lanes
from .naive_vs_fanout.figures import strategies as strategies
from .naive_vs_fanout.figures import timeline as timeline
from .peers.figures import verdict as verdict
from .pipeline.figures import graph as graph, pipeline_timeline as pipeline_timeline
from .pipeline.bench import load_pipeline as load_pipeline
from .serving.bench import serving_rounds as serving_rounds
from .serving.figures import beside_llama_server as beside_llama_server
from .serving.figures import requests_timeline as requests_timeline, tokens_by_layout as tokens_by_layout
from .snapshot_and_rope.figures import position_error_figure as position_error_figure
from .snapshot_and_rope.figures import rotation as rotation
from .snapshot_and_rope.positions import position_error as position_error
from .snapshot_and_rope.rope import Rope as Rope, shift as shift
from .snapshot_file.figures import snapshot_layout as snapshot_layout
from .tour.figures import idea as idea
from .tour.race import race_widget as race_widget
