"""README.md from its template and the numbers in data/: python -m swarmkv_studies.book.readme writes it."""

import json
from pathlib import Path

import jinja2
import pandas as pd

from swarmkv_lab.files import DATA, REFERENCE, ROOT
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.score import score
from swarmkv_studies.common.speedup import speedups
from swarmkv_studies.composing.quality import composed_quality
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED, measured
from swarmkv_studies.serving.bench import APART, LEADING, OURS, ROLES_FIRST, SLOTS
from swarmkv_studies.serving.figures import times_by_round

TEMPLATE = Path(__file__).with_name("README.md.j2")
README = ROOT / "README.md"


def rendered() -> str:
    """The page as the data are."""
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return engine.from_string(TEMPLATE.read_text(encoding="utf-8")).render(numbers())


def numbers() -> dict[str, str]:
    """What the template's places are filled with: texts, each computed from a file of data/."""
    return {**_article(), **_exactness(), **_peers(), **_serving(), **_composed(), **_kinds(), **_gpu()}


def _article() -> dict[str, str]:
    """The article's experiment: its two times beside ours, and how many times as early each strategy ends."""
    report = json.loads((DATA / "reference/bench.json").read_text(encoding="utf-8"))
    about, runs = report["environment"], pd.DataFrame(report["runs"])
    gains = speedups(runs, by=["strategy"])
    found = {
        "depth": f"{about['settings']['depth']:,}",
        "rounds": f"{runs.repeat.nunique()}",
        "model": about["model"],
        "machine": f"{about['processor']}, {about['cores']} cores",
        "snapshot": f"{report['restore']['bytes'] / 1e6:.1f} MB",
        "restore": f"{report['restore']['restore_ms']:.0f} ms",
    }
    for name, pair in measured(report).items():
        published = PUBLISHED[name]
        found |= {
            f"{name}_published": f"{published[0]:,} ms | {published[1]:,} ms | {_times(published[0] / published[1])}",
            f"{name}_measured": f"{pair.naive:,.0f} ms | {pair.ours:,.0f} ms | {_spread(pair.factor)}",
        }
    for name in ("swarmkv", "pooled", "shared", "batched"):
        found[name] = _spread(gains.loc[name])
    return found


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
    end = _by_round(runs[runs.n_agents == runs.n_agents.max()], "end_to_end_ms")
    return {
        "against_warm": _times((end.server_warm / end.batched).median()),
        "in_turns": _times((end.server_warm / end.shared).median()),
    }


def _serving() -> dict[str, str]:
    """How many times as early eight requests end on the lab's server as on llama-server with eight slots."""
    rows = pd.read_csv(REFERENCE / "serving.csv")
    found = {"serve_rounds": f"{rows.repeat.nunique()}"}
    for name, work in {"roles": ROLES_FIRST, "leading": LEADING, "apart": APART}.items():
        times = times_by_round(rows, work)
        found[f"serve_{name}"] = _times((times[SLOTS] / times[OURS]).median())
    return found


def _kinds() -> dict[str, str]:
    """Of tiny models of llama.cpp's architectures, how many have naive's bits in all three exact strategies."""
    table = pd.read_csv(REFERENCE / "architectures.csv")
    exact = (table[["swarmkv", "pooled", "shared"]] == 0).all(axis=1)
    return {"kinds": f"{len(table)}", "kinds_exact": f"{exact.sum()}"}


def _composed() -> dict[str, str]:
    """What taking cells from behind another role changes, by KL, and how many of eight agents' answers stay."""
    quality = composed_quality(score(read_study(DATA / "reference/composed.csv"))).set_index("arm")
    mine, runs = quality.loc["behind another role, k = 32"], pd.read_csv(REFERENCE / "composed_rounds.csv")
    return {
        "composed_same": f"{runs[runs.strategy == 'composed'].same_answers.median():.0f}",
        "composed_kl": f"{mine.kl:.1g}",
        "composed_floor": f"{quality.kl['full, 64 positions on']:.1g}",
    }


def _gpu() -> dict[str, str]:
    """The article's experiment on a GPU, with weights of the article's model's sizes."""
    folder = DATA / "gpu"
    runs = pd.read_csv(folder / "qwen2.5-7b/bench.csv")
    end = _by_round(runs, "end_to_end_ms")
    ours, naive = (runs[runs.strategy == name] for name in ("swarmkv", "naive"))
    return {
        "gpu": json.loads((folder / "qwen2.5-7b/bench.json").read_text(encoding="utf-8"))["environment"]["gpu"],
        "gpu_swarmkv": _times((end.naive / end.swarmkv).median()),
        "gpu_shared": _times((end.naive / end.shared).median()),
        "gpu_prefill": f"{naive.prefill_ms.median():.0f} ms",
        "gpu_activation": f"{(ours.activation_ms + ours.branch_ms).median():.0f} ms",
    }


def _by_round(runs: pd.DataFrame, time: str) -> pd.DataFrame:
    """A time in ms: a row per round, in which all strategies ran once in turn, and a column per strategy."""
    return runs.pivot(index="repeat", columns="strategy", values=time)


def _spread(gain: pd.Series) -> str:
    """The median of the ratios within each round, and their quartiles: 1.86x (1.83 to 1.88); gain: of speedups."""
    digits = 2 if gain["median"] < 10 else 0
    return f"{gain['median']:.{digits}f}x ({gain.low:.{digits}f} to {gain.high:.{digits}f})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


if __name__ == "__main__":
    README.write_text(rendered(), encoding="utf-8")
