"""Study: the same questions over the same document, answered in many ways: which answers change, and are they right?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from swarmkv_lab.errors import SwarmKVError, not_one_of, whole_number
from swarmkv_lab.fanout.documents import load_document
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.llama.model import Model
from swarmkv_lab.progress import tqdm
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_lab.snapshot.snapshot import KVSnapshot
from swarmkv_studies.answers.questions import Question, Questions, load_questions, parts, sections
from swarmkv_studies.common.provenance import environment

INSTRUCTION = "Answer in one short sentence, with the exact words or numbers of the text."
_TOGETHER = 8  # agents of one batch
_COLUMNS = ("model", "repeat", "arm", "part", "id", "n_prefix", "answer", "n_tokens", "token_hash")


@dataclass(frozen=True)
class Arm:
    """A way to answer: a strategy, a context's settings; early: each agent begins where its section ends."""

    strategy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    early: bool = False


ARMS: Mapping[str, Arm] = {
    "naive": Arm("naive"),
    "swarmkv": Arm("swarmkv"),
    "pooled": Arm("pooled"),
    "shared": Arm("shared"),
    "batched": Arm("batched"),
    "flash attention": Arm("shared", {"flash_attn": True}),
    "KV in q8_0": Arm("shared", {"kv_type": "q8_0", "flash_attn": True}),
    "KV in q4_0": Arm("shared", {"kv_type": "q4_0", "flash_attn": True}),
    "early": Arm("shared", early=True),
}


def study(
    model: Model,
    questions: Questions = None,
    document: str | Path = "dossier",
    *,
    arms: Sequence[str] = tuple(ARMS),
    n_parts: int = 4,
    max_tokens: int = 40,
    repeats: int = 1,
    n_threads: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask all questions in each of the ways of ARMS, greedily: a DataFrame, a row per answer, for ``score``.

    The document is cut in n_parts at its headings, and a question is asked over the part that holds its sections. The
    arms: the strategies (batched: eight agents at a time); shared with flash attention, then also with a smaller KV
    type, which needs it; and "early", shared with a watermark at the end of the question's section, where all others
    read their part to its end. Columns: model, repeat, arm, part, id, n_prefix (tokens that the agent reads), answer,
    n_tokens, and token_hash of the answer's token ids. questions: what load_questions takes.

    Raises SwarmKVError for unknown arms, and for a question whose sections are missing or in several parts.
    """
    for name in arms:
        if name not in ARMS:
            raise SwarmKVError(f"arm {not_one_of(name, ARMS)}")
    whole_number("repeats", repeats, 1)
    questions = load_questions(questions)
    text = load_document(document)
    texts = parts(text, whole_number("n_parts", n_parts, 1))
    asked = [_Asked(model, part, of_it) for part, of_it in zip(texts, by_part(questions, text, texts), strict=True)]
    rows: list[dict[str, Any]] = []
    todo = [
        key for key in product(range(repeats), dict.fromkeys(arms), range(1, n_parts + 1)) if asked[key[2] - 1].prompts
    ]
    total = sum(len(asked[part - 1].prompts) for _, _, part in todo)
    with tqdm(total=total, desc=f"study, {model.name}", unit="answer", disable=not progress) as bar:
        for repeat, name, part in todo:
            bar.set_postfix_str(f"{name}, part {part}")
            before = bar.n
            answered = asked[part - 1].answers(ARMS[name], max_tokens, n_threads, bar)
            rows += [_row(model, repeat, name, part, branch) for branch in answered]
            bar.update(before + len(answered) - bar.n)
    return pd.DataFrame(rows)


def about_study(model: Model) -> dict[str, Any]:
    """Where the dossier's questions were asked, ready for JSON; its settings say what the answers depend on."""
    asked: dict[str, Any] = {"document_hash": fingerprint(load_document("dossier"))}
    asked |= {"questions_hash": asked_hash(load_questions()), "instruction": INSTRUCTION}
    return environment(model, n_parts=4, max_tokens=40, **asked)


def asked_hash(questions: Sequence[Question]) -> str:
    """A fingerprint of what is asked. Accepted answers are no part of it: they can be mended without asking again."""
    return fingerprint(json.dumps([[one.id, one.question, list(one.sections)] for one in questions]))


def by_part(questions: Sequence[Question], text: str, texts: Sequence[str]) -> list[list[Question]]:
    """The questions of each part of a text: each part that has all of their sections."""
    sections(text)  # no two of one name
    held = [sections(part) for part in texts]
    asked: list[list[Question]] = [[] for _ in texts]
    for question in questions:
        places = [i for i, these in enumerate(held) if question.sections and {*question.sections} <= these.keys()]
        if not places:
            raise SwarmKVError(
                f"the question {question.id!r} needs the sections {', '.join(question.sections) or '(none)'}, and "
                f"no part of the text has them all: mend its sections, or cut the text in fewer than {len(texts)} parts"
            )
        asked[places[0]].append(question)
    return asked


class _Asked:
    """One part of the document, and its questions as tokens."""

    def __init__(self, model: Model, text: str, questions: Sequence[Question]) -> None:
        self._model = model
        self._prefix = model.read(text)
        self.prompts = {question.id: model.ask(f"{question.question} {INSTRUCTION}") for question in questions}
        whole = sections(text)
        ends = {
            question.id: max(text.index(whole[number]) + len(whole[number]) for number in question.sections)
            for question in questions
        }
        self._ends = {name: self._tokens_alike(text[:end]) for name, end in ends.items()}

    def answers(self, arm: Arm, max_tokens: int, n_threads: int | None, bar: tqdm) -> list[Branch]:
        """The branches of all questions, in groups of eight where they are packed."""
        names, together = list(self.prompts), _TOGETHER if arm.strategy == "batched" else len(self.prompts)
        document: np.ndarray | KVSnapshot = self._prefix
        if together < len(names):
            document = prefill(self._model, self._prefix, progress=False, n_threads=n_threads, **arm.settings)
        answered: list[Branch] = []
        for i in range(0, len(names), together):
            begun, group = bar.n, {name: self.prompts[name] for name in names[i : i + together]}

            def show(run: Run, begun: int = begun) -> None:
                bar.update(begun + sum(bool(branch.tokens) for branch in run.branches) - bar.n)

            how = {"callback": show, "n_threads": n_threads, **arm.settings}
            if arm.early:
                agents = [Agent(name, prompt, (), self._ends[name], max_tokens) for name, prompt in group.items()]
                run = Pipeline(self._model, self._prefix, agents).run(arm.strategy, **how)
            else:
                run = fan_out(self._model, document, group, arm.strategy, max_tokens=max_tokens, **how)
            answered += run.whole().branches
        return answered

    def _tokens_alike(self, text: str) -> int:
        """How many tokens of the part are this beginning of it. The last one may be another where a text is cut."""
        tokens = self._model.read(text)
        alike = tokens == self._prefix[: len(tokens)]
        return len(tokens) if alike.all() else int(np.argmin(alike))


def fingerprint(text: str) -> str:
    """A short hash of a text, to see whether it has changed."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def _row(model: Model, repeat: int, arm: str, part: int, branch: Branch) -> dict[str, Any]:
    answer = model.detokenize(branch.tokens).strip()
    token_hash = xxhash.xxh3_64_hexdigest(np.array(branch.tokens, np.int32).data)
    values = (model.name, repeat, arm, part, branch.name, branch.n_prefix, answer, len(branch.tokens), token_hash)
    return dict(zip(_COLUMNS, values, strict=True))
