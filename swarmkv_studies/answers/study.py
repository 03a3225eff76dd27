"""Study: the same questions over the same document, answered in many ways: which answers change, and are they right?"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.errors import not_one_of, whole_number
from swarmkv_lab.files import user_path
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.questions import Question, Questions, load_questions, parts, sections
from swarmkv_studies.common.provenance import environment, keep

INSTRUCTION = "Answer in one short sentence, with the exact words or numbers of the text."
_TOGETHER = 8  # agents of one batch
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """A way to answer: a strategy, a context's settings; early: each agent begins where its section ends."""

    strategy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    early: bool = False


ARMS: Mapping[str, Arm] = {
    **{name: Arm(name) for name in lab.STRATEGIES},
    "flash attention": Arm("shared", {"flash_attn": True}),
    "KV in q8_0": Arm("shared", {"kv_type": "q8_0", "flash_attn": True}),
    "KV in q4_0": Arm("shared", {"kv_type": "q4_0", "flash_attn": True}),
    "early": Arm("shared", early=True),
}


def study(
    model: lab.Model,
    questions: Questions = None,
    document: str | Path = "dossier",
    *,
    arms: Sequence[str] = tuple(ARMS),
    n_parts: int = 4,
    max_tokens: int = 40,
    repeats: int = 1,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Ask all questions in each of the ways of ARMS, greedily: a DataFrame, a row per answer, for ``score``.

    The arms: the strategies (batched: eight agents at a time); shared with flash attention, then also with a smaller KV
    type, which needs it; and "early", shared with a watermark at the end of the question's section, where all others
    read their part to its end. Columns: model, repeat, arm, part, id, n_prefix (tokens that the agent reads), answer,
    n_tokens, and token_hash of the answer's token ids. The rest is as in ``ask_all``.
    """
    part_of = partial(_Part, model, max_tokens)
    return ask_all(model, part_of, questions, document, arms, ARMS, n_parts=n_parts, repeats=repeats, path=path)


def ask_all(
    model: lab.Model,
    part_of: Callable[[str, Sequence[Question]], Any],
    questions: Questions,
    document: str | Path,
    arms: Sequence[str],
    known: Mapping[str, Any],
    *,
    n_parts: int,
    repeats: int = 1,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Cut a document in n_parts at its headings, and ask each question over the part that holds its sections.

    part_of: of a part's text and questions, what answers them: its ``rows(arm)`` has a row per answer. known: arms by
    name. questions: what load_questions takes. path: a CSV file, written after each arm of a part, that the same call
    goes on with. Raises SwarmKVError for arms that are not ``known``, and for a question whose sections are missing or
    in several parts.
    """
    for name in arms:
        if name not in known:
            raise lab.SwarmKVError(f"arm {not_one_of(name, known)}")
    whole_number("repeats", repeats, 1)
    questions, text = load_questions(questions), lab.load_document(document)
    texts = parts(text, whole_number("n_parts", n_parts, 1))
    asked = by_part(questions, text, texts)
    file = None if path is None else user_path(path)
    rows = read_study(file).to_dict("records") if file is not None and file.exists() else []
    done = {(row["model"], row["repeat"], row["arm"], row["part"]) for row in rows}
    keys = [(model.name, repeat, name) for repeat in range(repeats) for name in dict.fromkeys(arms)]
    with tqdm(total=n_parts * len(keys), desc=f"study, {model.name}", unit="arm", disable=None) as bar:
        for part, each in enumerate(zip(texts, asked, strict=True), 1):
            left = [key for key in keys if each[1] and (*key, part) not in done]
            bar.update(len(keys) - len(left))
            one = part_of(*each)
            for key in left:
                common = dict(zip(("model", "repeat", "arm", "part"), (*key, part), strict=True))
                rows += [common | row for row in one.rows(known[key[2]])]
                if file is not None:
                    keep(file, pd.DataFrame(rows))
                bar.update()
    return pd.DataFrame([row for row in rows if row["model"] == model.name])


def answer_row(model: lab.Model, tokens: Sequence[int]) -> dict[str, Any]:
    """An answer's text, its number of tokens and a hash of their ids: equal hashes, equal answers."""
    ids = np.array(tokens, np.int32)
    token_hash = xxhash.xxh3_64_hexdigest(ids.data)
    return {"answer": model.detokenize(ids).strip(), "n_tokens": len(ids), "token_hash": token_hash}


def about_study(model: lab.Model) -> dict[str, Any]:
    """Where the dossier's questions were asked, ready for JSON; its settings say what the answers depend on."""
    asked: dict[str, Any] = {"document_hash": fingerprint(lab.load_document("dossier"))}
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
            raise lab.SwarmKVError(
                f"the question {question.id!r} needs the sections {', '.join(question.sections) or '(none)'}, and "
                f"no part of the text has them all: mend its sections, or cut the text in fewer than {len(texts)} parts"
            )
        asked[places[0]].append(question)
    return asked


class _Part:
    """One part of the document, and its questions as tokens."""

    def __init__(self, model: lab.Model, max_tokens: int, text: str, questions: Sequence[Question]) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._prefix = model.read(text)
        self._prompts = {question.id: model.ask(f"{question.question} {INSTRUCTION}") for question in questions}
        whole = sections(text)
        ends = {
            question.id: max(text.index(whole[number]) + len(whole[number]) for number in question.sections)
            for question in questions
        }
        self._ends = {name: self._tokens_alike(text[:end]) for name, end in ends.items()}

    def rows(self, arm: Arm) -> Rows:
        """A row per question, which are asked in groups of eight where they are packed."""
        names, together = list(self._prompts), _TOGETHER if arm.strategy == "batched" else len(self._prompts)
        document: np.ndarray | lab.KVSnapshot = self._prefix
        if together < len(names):
            document = lab.prefill(self._model, self._prefix, progress=False, **arm.settings)
        rows: Rows = []
        for i in range(0, len(names), together):
            group = {name: self._prompts[name] for name in names[i : i + together]}
            if arm.early:
                agents = [
                    lab.Agent(name, prompt, (), self._ends[name], self._max_tokens) for name, prompt in group.items()
                ]
                run = lab.Pipeline(self._model, self._prefix, agents).run(arm.strategy, **arm.settings)
            else:
                run = lab.fan_out(
                    self._model, document, group, arm.strategy, max_tokens=self._max_tokens, **arm.settings
                )
            for branch in run.whole().branches:
                about = {"id": branch.name, "n_prefix": branch.n_prefix}
                rows.append(about | answer_row(self._model, branch.tokens))
        return rows

    def _tokens_alike(self, text: str) -> int:
        """How many tokens of the part are this beginning of it. The last one may be another where a text is cut."""
        tokens = self._model.read(text)
        alike = tokens == self._prefix[: len(tokens)]
        return len(tokens) if alike.all() else int(np.argmin(alike))


def fingerprint(text: str) -> str:
    """A short hash of a text, to see whether it has changed."""
    return xxhash.xxh3_64_hexdigest(text.encode())
