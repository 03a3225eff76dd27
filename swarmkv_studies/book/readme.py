"""README.md from its template and the numbers in data/: python -m swarmkv_studies.book.readme writes it."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from swarmkv_lab.files import DATA, ROOT

TEMPLATE = Path(__file__).with_name("README.md.j2")
README = ROOT / "README.md"
# The article's: GTX 1080, Qwen2.5-7B Q4_K_M, 3,501 tokens, two agents. Milliseconds, baseline and SwarmKV.
PUBLISHED = {"end_to_end": (10_275, 5_272), "activation": (4_339, 83)}


def rendered() -> str:
    """The page as the data are."""
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return engine.from_string(TEMPLATE.read_text(encoding="utf-8")).render(numbers())


def numbers() -> dict[str, str]:
    """What the template's places are filled with: texts, each computed from a file of data/."""
    return {**_article(), **_exactness(), **_peers(), **_gpu()}


def _article() -> dict[str, str]:
    """The article's experiment: its two times beside ours, and how many times as early each strategy ends."""
    report = json.loads((DATA / "reference/bench.json").read_text(encoding="utf-8"))
    about, runs = report["environment"], _runs(report)
    end = _by_round(runs, "end_to_end_ms")
    naive, ours = (runs[runs.strategy == name].set_index("repeat") for name in ("naive", "swarmkv"))
    # as the article counts: the prefill alone for the baseline, and for SwarmKV also the decoding of the question
    activation = naive.prefill_ms, ours.second_activation_ms + ours.second_branch_ms
    found = {
        "depth": f"{about['settings']['depth']:,}",
        "rounds": f"{len(end)}",
        "model": about["model"],
        "machine": f"{about['processor']}, {about['cores']} cores",
        "prefill_s": f"{runs[runs.strategy == 'shared'].prefill_ms.median() / 1e3:.1f} s",
        "snapshot": f"{report['restore']['bytes'] / 1e6:.1f} MB",
        "restore": f"{report['restore']['restore_ms']:.0f} ms",
    }
    pairs = {"end_to_end": (end.naive, end.swarmkv), "activation": activation}
    for name, (baseline, fast) in pairs.items():
        published = PUBLISHED[name]
        found |= {
            f"{name}_published": f"{published[0]:,} ms | {published[1]:,} ms | {_times(published[0] / published[1])}",
            f"{name}_measured": f"{baseline.median():,.0f} ms | {fast.median():,.0f} ms | {_spread(baseline / fast)}",
        }
    for name in ("swarmkv", "pooled", "shared", "batched"):
        found[name] = _spread(end.naive / end[name])
    return found


def _runs(report: dict) -> pd.DataFrame:
    """The bench's runs, with the second agent's own times."""
    runs = pd.DataFrame(report["runs"])
    for time in ("activation_ms", "branch_ms"):
        runs[f"second_{time}"] = [agents[1][time] for agents in runs.agents]
    return runs


def _exactness() -> dict[str, str]:
    """Logits of the exact strategies, and answers of the one that packs its agents."""
    grid = pd.read_csv(DATA / "reference/grid.csv")
    exact = grid[grid.strategy.isin(["swarmkv", "pooled", "shared"])]
    peers = pd.concat([pd.read_csv(DATA / f"reference/peers_{depth}.csv") for depth in (1024, 3501)])
    packed = peers[(peers.strategy == "batched") & (peers.n_agents > 1)]
    return {
        "exact_runs": f"{len(exact)}",
        "exact_difference": f"{exact.max_abs_logit_diff.max():g}",
        "packed_answers": f"{packed.n_agents.sum()}",
        "packed_changed": f"{(packed.n_agents - packed.same_answers).sum():.0f}",
    }


def _peers() -> dict[str, str]:
    """How many times as early ``batched`` and ``shared`` end as what people use today, with most agents."""
    runs = pd.read_csv(DATA / "reference/peers_1024.csv")
    most = runs.n_agents.max()
    end = _by_round(runs[runs.n_agents == most], "end_to_end_ms")
    one = runs[runs.n_agents == 1]
    prefill = _by_round(one, "prefill_ms")
    return {
        "peers_depth": f"{runs.depth.iloc[0]:,}",
        "peers_agents": f"{most}",
        "peers_rounds": f"{len(end)}",
        "against_slots": _times((end.server_cold / end.batched).median()),
        "against_warm": _times((end.server_warm / end.batched).median()),
        "in_turns": _times((end.server_warm / end.shared).median()),
        "transformers": _times((prefill.naive / prefill.transformers).median()),
    }


def _gpu() -> dict[str, str]:
    """The article's experiment on a GPU, with weights of the article's model's sizes."""
    folder = DATA / "gpu"
    runs = pd.read_csv(folder / "qwen2.5-7b/bench.csv")
    end = _by_round(runs, "end_to_end_ms")
    ours, naive = (runs[runs.strategy == name] for name in ("swarmkv", "naive"))
    return {
        "gpu": json.loads((folder / "peaks.json").read_text(encoding="utf-8"))["gpu"],
        "gpu_swarmkv": _times((end.naive / end.swarmkv).median()),
        "gpu_shared": _times((end.naive / end.shared).median()),
        "gpu_prefill": f"{naive.prefill_ms.median():.0f} ms",
        "gpu_activation": f"{ours.activation_ms.median():.0f} ms",
    }


def _by_round(runs: pd.DataFrame, time: str) -> pd.DataFrame:
    """A time in ms: a row per round, in which all strategies ran once in turn, and a column per strategy."""
    return runs.pivot(index="repeat", columns="strategy", values=time)


def _spread(ratios: pd.Series) -> str:
    """The median of the ratios within each round, and their quartiles: 1.86x (1.83 to 1.88)."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    digits = 2 if middle < 10 else 0
    return f"{middle:.{digits}f}x ({low:.{digits}f} to {high:.{digits}f})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


if __name__ == "__main__":
    README.write_text(rendered(), encoding="utf-8")
