"""Study: the same questions over the same document, answered in many ways: which answers change, and are they right?"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from tqdm.auto import tqdm

from swarmkv_lab.analysis.quality import read_study
from swarmkv_lab.analysis.questions import Question, load_questions, parts, sections
from swarmkv_lab.errors import SwarmKVError, whole_number
from swarmkv_lab.fanout.documents import load_document
from swarmkv_lab.fanout.fan_out import fan_out
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.fanout.run import Run
from swarmkv_lab.fanout.schedule import Branch
from swarmkv_lab.files import as_json, replacing, user_path
from swarmkv_lab.llama.model import Model
from swarmkv_lab.measure.provenance import environment
from swarmkv_lab.snapshot.prefill import prefill
from swarmkv_lab.snapshot.snapshot import KVSnapshot

INSTRUCTION = "Answer in one short sentence, with the exact words or numbers of the text."
_TOGETHER = 8  # agents of one batch
# What the answers depend on: a file is only gone on with if these are the same.
_SAME = ("model_hash", "llama_cpp", "settings")


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
    questions: Sequence[Question] | str | None = None,
    document: str | Path = "dossier",
    *,
    arms: Sequence[str] = tuple(ARMS),
    n_parts: int = 4,
    max_tokens: int = 40,
    repeats: int = 1,
    path: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask all questions in each of the ways of ARMS, greedily: a DataFrame, a row per answer, for ``score``.

    The document is cut in n_parts at its headings, and a question is asked over the part that holds its sections. The
    arms: the strategies (batched: eight agents at a time); shared with flash attention, then also with a smaller KV
    type, which needs it; and "early", shared with a watermark at the end of the question's section, where all others
    read their part to its end. Columns: model, repeat, arm, part, id, n_prefix (tokens that the agent reads), answer,
    n_tokens, and token_hash of the answer's token ids.

    path: a CSV file that keeps the answers as they come; the same call goes on with it after an interrupt, also for
    another model, and a file of other settings is refused. Without it, an interrupt returns the whole arms, with a
    warning. Raises SwarmKVError for unknown arms, and for a question whose sections are missing or in several parts.
    """
    for name in arms:
        if name not in ARMS:
            raise SwarmKVError(f"arm {name!r} is not one of {', '.join(ARMS)}")
    whole_number("repeats", repeats, 1)
    if questions is None or isinstance(questions, str):
        questions = load_questions(questions or "dossier")
    texts = parts(load_document(document), whole_number("n_parts", n_parts, 1))
    asked = {part: _Asked(model, text, _of_part(questions, texts, part)) for part, text in enumerate(texts, 1)}
    about = {"n_parts": n_parts, "max_tokens": max_tokens, "instruction": INSTRUCTION}
    about |= {"document_hash": _hash("".join(texts)), "questions_hash": _hash(repr(questions))}
    kept = _Kept(path, model, about)
    todo = list(product(range(repeats), arms, [part for part in asked if asked[part].prompts]))
    total = sum(len(asked[part].prompts) for _, _, part in todo)
    with tqdm(total=total, desc=f"study, {model.name}", unit="answer", disable=not progress) as bar:
        try:
            for repeat, name, part in todo:
                bar.set_postfix_str(f"{name}, part {part}")
                before = bar.n
                if (repeat, name, part) not in kept.done:
                    answered = asked[part].answers(ARMS[name], max_tokens, bar)
                    kept.add([_row(model, repeat, name, part, branch) for branch in answered])
                bar.update(before + len(asked[part].prompts) - bar.n)
        except KeyboardInterrupt:
            if path is not None or not kept.rows:
                raise
            warnings.warn(f"interrupted: the {len(kept.rows)} answers that are there are returned", stacklevel=2)
    return kept.frame()


def _of_part(questions: Sequence[Question], texts: Sequence[str], part: int) -> list[Question]:
    """The questions of one part of the text."""
    held = [sections(text) for text in texts]
    for question in questions:
        places = {number: [i for i, these in enumerate(held, 1) if number in these] for number in question.sections}
        if not places or not set.intersection(*({*where} for where in places.values())):
            raise SwarmKVError(
                f"the question {question.id!r} needs the sections {', '.join(question.sections)}, and no part of the "
                f"text has them all: {places}; mend its sections, or cut the text in fewer than {len(texts)} parts"
            )
    return [question for question in questions if set(question.sections) <= held[part - 1].keys()]


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
        self._watermarks = {name: self._tokens_alike(text[:end]) for name, end in ends.items()}

    def answers(self, arm: Arm, max_tokens: int, bar: tqdm) -> list[Branch]:
        begun = bar.n

        def show(run: Run) -> None:
            bar.update(begun + sum(bool(branch.tokens) for branch in run.branches) - bar.n)

        if arm.early:
            agents = [
                Agent(name, prompt, prefix_tokens=self._watermarks[name], max_tokens=max_tokens)
                for name, prompt in self.prompts.items()
            ]
            run = Pipeline(self._model, self._prefix, agents).run(arm.strategy, callback=show, **arm.settings)
            for error in run.errors.values():
                raise error
            return run.branches
        document: np.ndarray | KVSnapshot = self._prefix
        groups = [self.prompts]
        if arm.strategy == "batched":
            document = prefill(self._model, self._prefix, **arm.settings)
            items = list(self.prompts.items())
            groups = [dict(items[i : i + _TOGETHER]) for i in range(0, len(items), _TOGETHER)]
        answered: list[Branch] = []
        for group in groups:
            begun = bar.n
            how = {"max_tokens": max_tokens, "callback": show, **arm.settings}
            answered += fan_out(self._model, document, group, arm.strategy, **how).branches
            bar.update(begun + len(group) - bar.n)
        return answered

    def _tokens_alike(self, text: str) -> int:
        """How many tokens of the part are this beginning of it. The last one may be another where a text is cut."""
        tokens = self._model.read(text)
        alike = tokens == self._prefix[: len(tokens)]
        return len(tokens) if alike.all() else int(np.argmin(alike))


class _Kept:
    """The answers so far: in a CSV file, if there is a path, beside which a JSON file says what each model ran on."""

    def __init__(self, path: str | Path | None, model: Model, settings: dict[str, Any]) -> None:
        self._model = model.name
        self._path = None if path is None else user_path(path)
        self.rows: list[dict[str, Any]] = []
        if self._path is None:
            self.done: set[tuple[int, str, int]] = set()
            return
        if self._path.suffix != ".csv":
            raise SwarmKVError(f"{self._path.name}: a study is saved in a file whose name ends in .csv")
        about, beside = environment(model, **settings), self._path.with_suffix(".json")
        everyone = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        known = everyone.setdefault(model.name, json.loads(as_json(about)))
        for name in _SAME:
            if known[name] != (now := json.loads(as_json(about[name]))):
                raise SwarmKVError(
                    f"{self._path.name} has answers of {model.name} with {name} {known[name]}, and now it is {now}: "
                    "pass another path"
                )
        if self._path.exists():
            self.rows = read_study(self._path).to_dict("records")
        mine = [row for row in self.rows if row["model"] == model.name]
        self.done = {(row["repeat"], row["arm"], row["part"]) for row in mine}
        with replacing(beside) as file:
            file.write((as_json(everyone, indent=1) + "\n").encode())

    def add(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows
        if self._path is not None:
            with replacing(self._path) as file:
                file.write(pd.DataFrame(self.rows).to_csv(index=False).encode())

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame([row for row in self.rows if row["model"] == self._model])


def _hash(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def _row(model: Model, repeat: int, arm: str, part: int, branch: Branch) -> dict[str, Any]:
    return {
        "model": model.name,
        "repeat": repeat,
        "arm": arm,
        "part": part,
        "id": branch.name,
        "n_prefix": branch.n_prefix,
        "answer": model.detokenize(branch.tokens).strip(),
        "n_tokens": len(branch.tokens),
        "token_hash": xxhash.xxh3_64_hexdigest(np.array(branch.tokens, np.int32).data),
    }
