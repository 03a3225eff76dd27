"""The README's numbers, computed from data/: what the page must say, and a command that writes it.

    python tests/readme.py            # what differs
    python tests/readme.py --write    # write the numbers into README.md (make readme)

A sentence of the README that has numbers is a template here, with a place for each number, as in str.format: the words
around the places find it in the page. A place can also hold a whole table, or words that depend on the data, such as
who is first. What stands at no place and is no measurement is in GIVEN. tests/test_readme.py holds that no number of
the page is left over.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import pandas as pd

from swarmkv_lab.fanout.strategies import STRATEGIES
from swarmkv_studies.answers.quality import accuracy, differences
from swarmkv_studies.answers.questions import load_questions
from swarmkv_studies.answers.score import score
from swarmkv_studies.common.clock import corrected
from swarmkv_studies.common.measurements import Measurements, machine, measurements
from swarmkv_studies.common.summary import pipeline_table, share_of_bound, steady_rows
from swarmkv_studies.many_machines.tables import arrivals_table, cluster_table, death_table
from swarmkv_studies.naive_vs_fanout.article_table import PUBLISHED, as_published, times
from swarmkv_studies.peers.verdict import noise

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

# Numbers that nobody measured: versions, sizes that somebody chose, what a name says. Each stands in the page.
GIVEN = (
    "Python 3.11",
    "9 June 2026",
    "GTX 1080",
    "llama-cpp-python 0.3.36",
    "a question of 12 tokens",
    "(Gemma 3)",
    "256 blocks of it are hashed",
    "exit status 2 (130 after Ctrl-C)",
)

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_WORDS = r"(?:(?!\n\n)[\s\S])*?"  # of one paragraph, or a table


class Span(NamedTuple):
    """A sentence, with a place for each value."""

    template: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        """What belongs at each place."""
        specs = [spec for _, field, spec, _ in Formatter().parse(self.template) if field is not None]
        return [format(value, spec) for value, spec in zip(self.values, specs, strict=True)]

    def find(self, page: str) -> re.Match[str]:
        """Where it stands in the page. Raises LookupError if its words are not there, or more than once."""
        pattern, values = "", iter(self.values)
        for literal, field, _, _ in Formatter().parse(self.template):
            pattern += r"\s+".join(map(re.escape, re.split(r"\s+", literal)))
            if field is not None:
                pattern += f"({_WORDS if isinstance(next(values), str) else _NUMBER})"
        found = list(re.finditer(pattern, page))
        if len(found) != 1:
            raise LookupError(f"{len(found)} times in README.md: {self.template}")
        return found[0]

    def differences(self, page: str) -> list[tuple[tuple[int, int], str, str]]:
        """(where, what the page says, what it should say) of each place that is not as the data are."""
        match = self.find(page)
        said = zip(range(1, len(self.values) + 1), self.texts, strict=True)
        return [(match.span(i), match[i], text) for i, text in said if not _alike(match[i], text)]


def _alike(said: str, text: str) -> bool:
    """Words may be wrapped elsewhere; a table may not."""
    return said == text if "|" in text else said.split() == text.split()


def refreshed(page: str, spans: Sequence[Span]) -> str:
    """The page with the numbers of the data."""
    for (start, end), _, text in sorted((each for span in spans for each in span.differences(page)), reverse=True):
        page = page[:start] + text + page[end:]
    return page


def loose_numbers(page: str, spans: Sequence[Span]) -> list[str]:
    """The lines with a number that stands at no place and is not given. Code, links and names do not count."""
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731
    kept = page
    for span in spans:
        match = span.find(page)
        for i in range(1, len(span.values) + 1):
            start, end = match.span(i)
            kept = kept[:start] + blank(re.match(r"[\s\S]*", kept[start:end])) + kept[end:]
    given = [r"\s+".join(map(re.escape, phrase.split())) for phrase in GIVEN]
    for pattern in (r"^```[\s\S]*?^```", r"`[^`\n]*`", r"\]\([^)]*\)", r"https?://\S+", *given):
        kept = re.sub(pattern, blank, kept, flags=re.MULTILINE)
    lines = zip(kept.splitlines(), page.splitlines(), strict=True)
    return [line for left, line in lines if re.search(r"(?<![\w.-])\d[\d.,]*x?(?!\w)", left)]


# -- what the data say


def all_spans(m: Measurements | None = None) -> list[Span]:
    """Every sentence and table of the README with a measured number."""
    m = m or measurements("reference")
    parts = (_article, _bench, _clock, _formats, _peers, _answers, _files, _machines, _pipeline, _gpu)
    return [span for part in parts for span in part(m)]


def say(template: str, *values: Any) -> Span:
    return Span(template, values)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *rest = ("".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


def listed(names: Sequence[Any]) -> str:
    """a, b and c."""
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


def _article(m: Measurements) -> Iterator[Span]:
    """The article's table beside ours; and the second agent by itself, its times corrected as its run's are."""
    factor = lambda pair: times(pair[0] / pair[1])  # noqa: E731
    ms = lambda pair: [f"{each:,.0f} ms" for each in pair]  # noqa: E731
    row = lambda name, published, ours: [  # noqa: E731
        name, *([*ms(published), factor(published)] if published else 3 * ["-"]), *ms(ours), factor(ours)
    ]  # fmt: skip
    end_to_end, activation = PUBLISHED["end_to_end"], PUBLISHED["activation"]
    counted = as_published(m.bench)
    naive, ours = (_second(m, name) for name in ("naive", "swarmkv"))
    rows = [
        ["", "published: baseline", "SwarmKV", "factor", "measured: `naive`", "`swarmkv`", "factor"],
        row("end to end, two agents", end_to_end, counted["end_to_end"]),
        row(
            "the second agent's activation, as the article counts",
            activation,
            (counted["activation"][0], ours.activation_ms + ours.branch_ms),
        ),
        row("the same, until its context holds the document", None, (naive.activation_ms, ours.activation_ms)),
    ]
    yield say("{:,} tokens, on {}):\n\n{}\n\nThe article", m.bench["environment"]["settings"]["depth"],
              machine(m.bench["environment"]), table(rows))  # fmt: skip
    first = _second(m, "swarmkv", 0)
    yield say("The first agent's activation takes {:.0f} ms", first.activation_ms)
    yield say(
        "the article gives the two factors as {:.2f} % and {:.2f} % less time",
        *(100 * (1 - pair[1] / pair[0]) for pair in (end_to_end, activation)),
    )


def _second(m: Measurements, strategy: str, i: int = 1) -> pd.Series:
    """Medians of the i-th agent over the bench's runs."""
    runs = pd.DataFrame(m.bench["runs"])
    kept = runs.loc[steady_rows(m.bench["runs"]).index]
    scale = corrected(kept).end_to_end_ms / kept.end_to_end_ms
    of_it = kept[kept.strategy == strategy]
    agents = pd.DataFrame([agents[i] for agents in of_it.agents], index=of_it.index)
    return agents[["activation_ms", "branch_ms"]].mul(scale[of_it.index], axis=0).median()


def _bench(m: Measurements) -> Iterator[Span]:
    about, summary, restore = m.bench["environment"], m.bench["summary"], m.bench["restore"]
    head = ("strategy", "activation, ms", "TTFT, ms", "end to end, ms", "TTFT", "end to end", "raw", "KV memory",
            "max abs. logit difference", "same answers")  # fmt: skip
    rows = [
        (
            f"`{name}`",
            f"{row['activation_ms']:,.1f}",
            f"{row['ttft_ms']:,.0f}",
            f"{row['end_to_end_ms']:,.0f}",
            f"{row['ttft_speedup']:.0f}x",
            f"{row['end_to_end_speedup']:.2f}x",
            f"{row['raw_end_to_end_speedup']:.2f}x",
            f"{row['kv_bytes'] / 1e6:.0f} MB",
            f"{row['max_abs_logit_diff']:.2g}",
            "all" if row["same_tokens"] else "not all",
        )
        for name, row in summary.items()
    ]
    asked = about["settings"]
    yield say(
        "{} agents, the first {:,} tokens of the dossier, answers of {} tokens; {} on {}; medians of {} interleaved",
        asked["n_agents"], asked["depth"], asked["max_tokens"], about["model"], machine(about),
        summary["naive"]["repeats"],
    )  # fmt: skip
    yield say('"raw" is not.\n\n{}\n\nIf branches', table([head, *rows]))
    yield say(
        "{} agents cannot gain more than {:.2f}x here end to end", asked["n_agents"],
        summary["naive"]["end_to_end_bound"],
    )  # fmt: skip
    yield say("A restore takes {:.2f} times as long as a memory copy of the same {:,} bytes",
              restore["ratio"], restore["bytes"])  # fmt: skip
    grid = m.environment("grid.json")
    yield say("(data/reference/grid.csv); {}, {}). A cost", grid["model"], machine(grid))


def _clock(m: Measurements) -> Iterator[Span]:
    rounds, benches = share_of_bound(m.clock, rounds=1), share_of_bound(m.clock)
    again = benches[benches.n_agents == benches.n_agents.mode()[0]]

    def ends(values: pd.Series) -> tuple[float, float]:
        return 100 * values.min(), 100 * values.max()

    yield say(
        "{} rounds of `naive` and `shared` ({:,} tokens; {} agents) found {:.0f} to {:.0f} % of the bound as measured, "
        "and {:.0f} to {:.0f} % corrected; {} benches in a row of two rounds each, with {} agents, found {:.0f} to "
        "{:.0f} % and {:.0f} to {:.0f} %",
        len(rounds), rounds.depth.iloc[0], listed(sorted(rounds.n_agents.unique())), *ends(rounds.raw),
        *ends(rounds.corrected), len(again), again.n_agents.iloc[0], *ends(again.raw), *ends(again.corrected),
    )  # fmt: skip


def _formats(m: Measurements) -> Iterator[Span]:
    formats, tuned = m.formats.set_index("format"), m.tuning.set_index(m.tuning.flash_attn.astype(str))
    ours, source = formats.loc["q8_0"], formats[formats.is_source].iloc[0]
    yield say("fetches a small model ({:.0f} MB, once)", source.file_bytes / 1e6)
    yield say(
        "{:,} tokens take {:.1f} s instead of {:.1f}, a question of 12 tokens after them {:.0f} ms instead of {:.0f}, "
        "and each further token {:.0f} ms instead of {:.0f}. The predictions change by a KL of {:.4f}",
        ours.n_tokens, ours.prefill_ms / 1e3, source.prefill_ms / 1e3, ours.branch_ms, source.branch_ms, ours.token_ms,
        source.token_ms, ours.kl_mean,
    )  # fmt: skip
    both = tuned.loc[["False", "True"]]
    yield say(
        "At {:,} tokens the prefill takes {:.1f} s without flash attention and {:.1f} with it; a question then takes "
        "{:.0f} and {:.0f} ms",
        m.bench["environment"]["settings"]["depth"], *both.prefill_ms / 1e3, *both.branch_ms,
    )  # fmt: skip
    builds = m.builds[m.builds.work == "prefill"].groupby(["build", "flash_attn"]).tokens_per_s.median().unstack(0)
    blas = (builds["default"] / builds["GGML_BLAS=ON, OpenBLAS"]).median()
    linked = 100 * (builds["GGML_LTO=ON"] / builds["default"] - 1).abs().max()
    yield say("OpenBLAS makes a prefill {:.1f} times slower", blas)
    yield say("link-time optimisation changes it by at most {:.0f} %", linked)


# What the README's tables show of the peers, and in which words.
_PEERS = {
    "naive": ("`naive`", "each agent prefills"),
    "server_cold": ("llama-server, all at once, one slot per agent", "each slot prefills"),
    "server_unified": ("the same, `--kv-unified`", "each slot prefills, and attends to the others' tokens too"),
    "server_warm": ("llama-server's warm slot, one after another", "keeps one prompt"),
    "llama_prefix": ("llama-cpp-python, one `Llama` used again", "keeps one prompt"),
    "transformers": ("transformers, one deepcopy of its cache per agent", "bfloat16 weights"),
    "shared": ("`shared`, one after another", ""),
    "batched": ("`batched`, all at once", ""),
}


def _peers(m: Measurements) -> Iterator[Span]:
    shallow, deep = (rows for _, rows in m.peers.groupby("depth"))
    total = shallow.groupby(["strategy", "n_agents"]).end_to_end_ms.median()
    about = m.environment("peers_1024.json")
    yield say(
        "people use today ({}, {:,} tokens, the same weights file, end to end in seconds; corrected medians of {} runs",
        machine(about), shallow.depth.iloc[0], shallow.repeat.nunique(),
    )  # fmt: skip
    yield say("(data/reference/peers_1024.csv)):\n\n{}\n\nThe same at", _peers_table(shallow, why=True))
    chosen = m.environment("peers_3501.json")["settings"].get("flash_attn")
    words = {True: "throughout", False: "off"}
    yield say(
        "The same at {:,} tokens, of the peers that come closest; ours with the fastest settings (`studies.tune`), "
        "here flash attention {}, the peers with",
        deep.depth.iloc[0], words[chosen],
    )  # fmt: skip
    yield say("(data/reference/peers_3501.csv)):\n\n{}\n\n**Who is first", _peers_table(deep))
    yield say("First to end at {:,} tokens: {}. At {:,} tokens: {}. Named", *(
        value for rows in (shallow, deep) for value in (rows.depth.iloc[0], _first(rows))
    ))  # fmt: skip
    yield say(
        "Named together are those that end within {:.0f} % and {:.0f} % of the first, by which prefills of the same "
        "work differ here",
        *(100 * (noise(rows, list(STRATEGIES)) - 1) for rows in (shallow, deep)),
    )
    several = [n for n in (4, 8) if (n in total["server_cold"])]
    yield say(
        "`batched` ends {} times as early as llama-server with a slot for each agent",
        listed([f"{total['server_cold'][n] / total['batched'][n]:.1f} ({n} agents)" for n in several]),
    )
    other, naive = (shallow[(shallow.strategy == name) & (shallow.n_agents == 1)] for name in ("transformers", "naive"))
    yield say(
        "transformers prefills {:.1f} times as fast, as this processor multiplies bfloat16 matrices in hardware, and "
        "takes {:.1f} times as long for an answer's further tokens",
        naive.prefill_ms.median() / other.prefill_ms.median(),
        other.generate_ms.median() / naive.generate_ms.median(),
    )
    ttft = m.warm_ttft.groupby("program").ttft_ms.median()
    yield say(
        "A question over a document in the cache takes `shared` {:.0f} ms, and a warm slot {:.0f}",
        ttft["shared"], ttft["server_warm"],
    )  # fmt: skip
    packed = m.peers[(m.peers.strategy == "batched") & (m.peers.n_agents > 1)]
    answers, changed = packed.n_agents.sum(), (packed.n_agents - packed.same_answers).sum()
    yield say(
        "of {} answers {} change ({:.0f} %), and a run's first change is at token {:.0f} (median",
        int(answers), int(changed), 100 * changed / answers, packed.first_difference.median() + 1,
    )  # fmt: skip


def _peers_table(rows: pd.DataFrame, why: bool = False) -> str:
    seconds = rows.groupby(["strategy", "n_agents"]).end_to_end_ms.median().unstack() / 1e3
    lines = [("number of agents", *map(str, seconds), *([""] if why else []))]
    for name, (words, reason) in _PEERS.items():
        if name in seconds.index:
            lines.append((words, *(f"{value:.1f}" for value in seconds.loc[name]), *([reason] if why else [])))
    return table(lines)


def _first(rows: pd.DataFrame) -> str:
    """Who ends first with each number of agents, and who cannot be told apart from that one."""
    tie = noise(rows, list(STRATEGIES))
    seconds = rows[rows.strategy.isin(_PEERS)].groupby(["n_agents", "strategy"]).end_to_end_ms.median()
    parts = []
    for n, one in seconds.groupby("n_agents"):
        near = one.droplevel(0)[lambda ms: ms <= tie * ms.min()].sort_values().index
        words = [_PEERS[name][0].replace(", one after another", "").replace(", all at once", "") for name in near]
        parts.append(f"{listed([each.split(',')[0] for each in words])} with {n} agent{'s'[: n > 1]}")
    return ", ".join(parts)


def _answers(m: Measurements) -> Iterator[Span]:
    scored = score(m.study)
    rates = accuracy(scored[scored.repeat == 0]).set_index(["model", "arm"])
    small, large = scored.model.unique()
    right = rates.right
    changes = differences(scored[scored.repeat == 0]).groupby("arm")[["n", "changed", "became_right", "became_wrong"]]
    rows = changes.sum()
    yield say(
        "Of {} questions over the dossier, SmolLM2-135M answers {} right, and Qwen2.5-Coder-0.5B {}",
        int(rates.n[small, "naive"]), int(right[small, "naive"]), int(right[large, "naive"]),
    )  # fmt: skip
    for arm, subject in {
        "batched": "`batched` changes",
        "flash attention": "Flash attention changes",
        "KV in q8_0": "a KV cache in q8_0",
        "KV in q4_0": "one in q4_0",
    }.items():
        template = subject + " {} of {}, of which {} become right and {} wrong"
        row = rows.loc[arm]
        yield say(template, *map(int, (row.changed, row.n, row.became_right, row.became_wrong)))
    yield say(
        "the larger model falls from {} right answers to {}",
        int(right[large, "naive"]),
        int(right[large, "KV in q4_0"]),
    )
    yield say(
        "and read no further, answer {} and {} right instead of {} and {}",
        *(int(right[model, arm]) for arm in ("early", "naive") for model in (large, small)),
    )
    unanswered = sum(not question.answers for question in load_questions("dossier"))
    yield say("{} questions ask for what the dossier does not say", unanswered)


def _files(m: Measurements) -> Iterator[Span]:
    file, about = m.snapshot_file["snapshot_file"], m.environment("snapshot_file.json")
    yield say(
        "Measured on {} ([data/reference](data/reference/snapshot_file.json)): `load` of the {:.1f} MB with all its "
        "checks takes {:.0f} ms, and `restore` {:.0f} ms. Together this is {:.1f} times as long as",
        machine(about), file["bytes"] / 1e6, file["load_ms"], file["restore_ms"], file["ratio"],
    )  # fmt: skip


def _machines(m: Measurements) -> Iterator[Span]:
    crews = cluster_table(m.cluster).set_index("crew")
    yield say(
        "Measured on {} ([data/reference](data/reference/cluster.csv), {:,} tokens): a worker with both cores answers "
        "{} agents in {:.2f} times the time of this process alone; {} agents on two workers with a core each take "
        "{:.2f} times as long as one process with both",
        machine(m.environment("cluster.json")), m.cluster.depth.iloc[0],
        *(value for crew in ("1 x 2", "2 x 1") for value in (crews.n_agents[crew], crews.ratio[crew])),
    )  # fmt: skip
    yield say("all answers are there after {:.1f} times the undisturbed time", death_table(m.deaths).ratio)
    way = m.transfer.groupby(["depth", "way"]).ms.median().unstack()
    ratio = way["verified and restored"] / way["plain copy"]
    yield say(
        "takes {:.1f} times as long as the plain copy of its bytes through a socket at {:,} tokens, and {:.1f} times "
        "at {:,}",
        ratio.iloc[-1], ratio.index[-1], ratio.iloc[0], ratio.index[0],
    )  # fmt: skip
    yield say("is predicted within {:.0f} %", 100 * arrivals_table(m.arrivals).error.max())
    median = m.join.groupby("bandwidth")[["join_ms", "load_ms"]].median()
    better = median.load_ms.clip(upper=m.join.compute_ms.median())
    yield say("`studies.join` takes down to {:.2f} of the better of", (median.join_ms / better).min())


def _pipeline(m: Measurements) -> Iterator[Span]:
    rows, about = m.pipeline, m.environment("pipeline.json")
    n_agents = rows.agent.nunique()
    yield say(
        "The dossier's pipeline over {:,} tokens, {} agents ({}, {}; medians of {} rounds",
        rows.depth.iloc[0], n_agents, about["model"], machine(about), rows.repeat.nunique(),
    )  # fmt: skip
    names = {
        "naive": "`naive`",
        "shared": "`shared`, watermarks",
        "batched": "`batched`, watermarks",
        "batched, waiting": "`batched`, all wait for the whole document",
    }
    lines = [("", "first answer begins", "all answers have ended", "longer than the critical path", "same answers")]
    for name, row in pipeline_table(rows).iterrows():
        begins, same = f"{row.first_s:.1f} s", "not compared: agents read more"
        if name == "naive":
            lines.append((names[name], begins, f"{row.end_to_end_s:.1f} s", "", ""))
            continue
        if not pd.isna(row.same_tokens):
            same = "all" if row.same_tokens == 1 else f"{row.same_tokens * n_agents:.0f} of {n_agents}"
            begins += f", at {100 * row.read_before_first:.0f} % of the prefill"
        over = f"{100 * row.over_critical:.1f} %"
        lines.append((names[name], begins, f"{row.end_to_end_s:.1f} s", over, same))
    yield say("had a machine of their own:\n\n{}\n\n![Timeline of a pipeline", table(lines))


def _gpu(_: Measurements) -> Iterator[Span]:
    gpu = ROOT / "data/gpu"
    runs = pd.read_csv(gpu / "qwen2.5-7b/bench.csv")
    medians = runs.groupby("strategy").median(numeric_only=True)
    naive, article, shared = (medians.loc[name] for name in ("naive", "swarmkv", "shared"))
    yield say("On an {} (`swarmkv-lab gpu`", json.loads((gpu / "peaks.json").read_text())["gpu"])
    yield say("random, in Q8_0; {:,} tokens; raw times) `swarmkv`", runs.depth.iloc[0])
    yield say(
        "After a prefill of {:.0f} ms, activation as the article does it takes {:.0f} ms, {:.0f} of them for the copy, "
        "{:.0f} for the context and {:.0f} for the restore; with the decode of the question, which the article counts "
        "too, it is {:.0f} ms. `shared` takes {:.1f} ms",
        naive.prefill_ms, article.activation_ms, article.copy_ms, article.context_ms, article.restore_ms,
        article.activation_ms + article.branch_ms, shared.activation_ms,
    )  # fmt: skip
    yield say(
        "{} agents end {:.2f} times as early with `swarmkv`, and {:.2f} times with `shared`",
        int(naive.n_agents), naive.end_to_end_ms / article.end_to_end_ms, naive.end_to_end_ms / shared.end_to_end_ms,
    )  # fmt: skip


def main() -> int:
    """Print what differs, or write it; 1 if something differs and was not written, or a number is left over."""
    page, spans = README.read_text(encoding="utf-8"), all_spans()
    write = sys.argv[1:] == ["--write"]
    for span in spans:
        for _, said, text in span.differences(page):
            print(f"{said!r} -> {text!r}")
    new = refreshed(page, spans)
    if write:
        README.write_text(new, encoding="utf-8")
    loose = loose_numbers(new, spans)
    for line in loose:
        print(f"no data behind a number of: {line}")
    return int(bool(loose) or (not write and new != page))


if __name__ == "__main__":
    sys.exit(main())
