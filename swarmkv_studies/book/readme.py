"""README.md from its template and the numbers in data/: python -m swarmkv_studies.book.readme writes it."""

from pathlib import Path

import jinja2
import pandas as pd

from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_lab.files import REFERENCE, ROOT
from swarmkv_studies.answers.score import score
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.common.speedup import as_words, factor, quartiles, speedups, with_spread
from swarmkv_studies.composing.quality import composed_quality
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED, measured, on_gpus
from swarmkv_studies.peers.verdict import AT_ONCE, IN_TURNS, verdict
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
    """The article's experiment with two agents, what becomes of it with more, and each strategy's row of the table."""
    here, h200 = measurements(), measurements("gpu/qwen2.5-7b")
    report, about = here.bench, here.bench["environment"]
    runs, depth = pd.DataFrame(report["runs"]), about["settings"]["depth"]
    eight, sixteen = (m.grid[(m.grid.depth == depth) & (m.grid.n_agents == n)] for m, n in ((here, 8), (h200, 16)))
    second = runs.assign(second_ms=[agents[1]["ttft_ms"] for agents in runs.agents])
    activation = measured(report).loc["activation"]
    found = {
        "depth": f"{depth:,}",
        "answer": f"{about['settings']['max_tokens']}",
        "published": factor(PUBLISHED["end_to_end"][0] / PUBLISHED["end_to_end"][1]),
        "rounds": f"{runs.repeat.nunique()}",
        "gpu_rounds": f"{sixteen.repeat.nunique()}",
        "model": about["model"],
        "machine": f"{about['processor']}, {about['cores']} cores",
        "activation": f"{activation.swarmkv:.0f} ms ({factor(activation['median'])})",
        **_even(eight),
        "second": factor(speedups(second, "second_ms", ["strategy"])["median"].swarmkv),
        "snapshot": f"{report['restore']['bytes'] / 1e6:.1f} MB",
        "restore": f"{report['restore']['restore_ms']:.0f} ms",
    }
    for name in STRATEGIES:
        found[name] = " | ".join(_cell(rows, name) for rows in (runs, eight, sixteen))
    return found


def _even(runs: pd.DataFrame) -> dict[str, str]:
    """How long the same prefill took in the strategies' runs, and their factors had it taken as long as naive's."""
    prefill, end = (
        runs.pivot(index="repeat", columns="strategy", values=f"{time}_ms") for time in ("prefill", "end_to_end")
    )
    seconds = prefill.median() / 1e3
    *first, last = (
        factor((end.naive / (end[n] - prefill[n] + prefill.naive)).median()) for n in STRATEGIES if n != BASELINE
    )
    found = {"least_prefill": f"{seconds.min():.1f}", "most_prefill": f"{seconds.max():.1f}"}
    return found | {"alike": f"{', '.join(first)} and {last}"}


def _cell(runs: pd.DataFrame, strategy: str) -> str:
    """Median seconds, and how many times as early as naive."""
    median = runs[runs.strategy == strategy].end_to_end_ms.median() / 1e3
    seconds = f"{median:.{2 if median < 10 else 1}f} s"
    gain = speedups(runs, by=["strategy"]).loc[strategy]
    return seconds if strategy == BASELINE else f"{seconds}: {with_spread(gain)}"


def _exactness() -> dict[str, str]:
    """Logits of the exact strategies, and answers of the one that packs its agents, which are alike in all rounds."""
    grid = pd.read_csv(REFERENCE / "grid.csv")
    exact = grid[grid.strategy.isin(["swarmkv", "pooled", "shared"])]
    packed = grid[(grid.strategy == "batched") & (grid.repeat == 0) & (grid.n_agents > 1)]
    return {
        "exact_runs": f"{len(exact)}",
        "exact_difference": f"{exact.max_abs_logit_diff.max():g}",
        "packed_answers": f"{packed.n_agents.sum():,}",
        "packed_changed": f"{(packed.n_agents - packed.same_answers).sum():,.0f}",
    }


def _peers() -> dict[str, str]:
    """The fastest strategy beside the fastest of what people use today, in words."""
    table = verdict(measurements().peers, list(STRATEGIES))
    return {"in_turns": as_words(table.loc[IN_TURNS]), "at_once": as_words(table.loc[AT_ONCE])}


def _serving() -> dict[str, str]:
    """How many times as early eight requests end on the lab's server as on llama-server with eight slots."""
    times = {work: times_by_round(measurements().serving, work) for work in (ROLES_FIRST, LEADING, APART)}
    ratios = {work: each[SLOTS] / each[OURS] for work, each in times.items()}
    found = {"serve_roles": factor(ratios[ROLES_FIRST].median()), "serve_leading": factor(ratios[LEADING].median())}
    return found | {"serve_apart": as_words(quartiles(ratios[APART]))}


def _kinds() -> dict[str, str]:
    """Of tiny models of llama.cpp's architectures, how many have naive's bits in all three exact strategies."""
    table = pd.read_csv(REFERENCE / "architectures.csv")
    exact = (table[["swarmkv", "pooled", "shared"]] == 0).all(axis=1)
    return {"kinds": f"{len(table)}", "kinds_exact": f"{exact.sum()}"}


def _composed() -> dict[str, str]:
    """What taking cells from behind another role changes, as the server does it, beside what other positions do."""
    quality = composed_quality(score(measurements().composed)).set_index("arm")
    mine, floor = quality.loc["behind another role, k = 8"], quality.loc["full, 64 positions on"]
    return {
        "composed_same": f"{mine.n - mine.changed:.0f}",
        "composed_floor_same": f"{floor.n - floor.changed:.0f}",
        "composed_questions": f"{mine.n:.0f}",
        "composed_kl": f"{mine.kl:.1g}",
        "composed_floor": f"{floor.kl:.1g}",
        "composed_right": f"{quality.loc['full'].right:.0f}",
    }


def _gpu() -> dict[str, str]:
    """The article's experiment on a GPU, with weights of the article's model's sizes."""
    gains, small = (speedups(on_gpus()[name].bench_runs, by=["strategy"]) for name in ("qwen2.5-7b", "default"))
    found = {f"gpu_{name}": factor(gains["median"][name]) for name in ("swarmkv", "shared")}
    return found | {"gpu_least": factor(small["median"].swarmkv), "gpu_pair_rounds": f"{gains.rounds.swarmkv}"}


if __name__ == "__main__":
    README.write_text(rendered(), encoding="utf-8")
