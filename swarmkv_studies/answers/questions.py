"""Questions whose answers can be checked, and the sections of the text that hold these answers."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import DATA, read_text
from swarmkv_studies.answers.wording import pattern

_HEADING = re.compile(r"^(#{2,6}) (?:Appendix ([A-Z])\.? |(\d+(?:\.\d+)*)\.? )?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """``answers``: all of them must be said, each in one of its wordings; none: the right answer is "not stated".

    ``rejects``: what a right answer does not say. ``sections``: numbers or names of those that hold the answers.
    ``absent``: for a question that the document does not answer, words that it would have to use. Wordings: see says.
    """

    id: str
    kind: str
    level: str
    question: str
    answers: Sequence[Sequence[str]] = ()
    sections: Sequence[str] = ()
    rejects: Sequence[str] = ()
    absent: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("id", "kind", "level", "question"):
            if not isinstance(value := getattr(self, name), str) or not value.strip():
                raise SwarmKVError(f"{name} is {value!r}, and it must be a text")
        for name in ("sections", "rejects", "absent"):
            _require_texts(name, getattr(self, name), "a list of texts", least=0)
        if not isinstance(self.answers, list | tuple):
            raise SwarmKVError(f"answers is {self.answers!r}, and it must be a list of lists of texts")
        for wordings in self.answers:
            _require_texts("answers", wordings, "a list of lists of texts")
        for wording in (*self.rejects, *(one for wordings in self.answers for one in wordings)):
            pattern(wording)


Questions = str | Path | Sequence[Question] | None
"""Where questions are from: what load_questions takes, or a list of them."""


def load_questions(source: Questions = None) -> list[Question]:
    """The questions of a document ("dossier", the default), those of a JSON file (a list of objects), or those given.

    Raises SwarmKVError for a file that is no such list, for an empty list, and for two questions of one id.
    """
    name = "the list"
    if source is None or isinstance(source, str | Path):
        bundled = DATA / "documents" / f"{source or 'dossier'}.questions.json"
        path = bundled if os.path.isfile(bundled) else source or "dossier"
        name = str(path)
        try:
            rows = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise SwarmKVError(f"{name} is not JSON: {error}") from error
        if not isinstance(rows, list):
            raise SwarmKVError(f"{name} must be a list of questions")
        source = [_question(row, f"{name}: question {i}") for i, row in enumerate(rows, 1)]
    if not isinstance(source, list | tuple) or not all(isinstance(one, Question) for one in source) or not source:
        raise SwarmKVError(f"{name} must be a list of questions, with at least one in it")
    ids = [question.id for question in source]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SwarmKVError(f"{name}: two questions have the id {', '.join(twice)}")
    return list(source)


def sections(text: str) -> dict[str, str]:
    """The sections of a Markdown text by number, or by title where they have none; each with those below it.

    "## Appendix A. Logs" is A. Raises SwarmKVError for two sections of one number or title.
    """
    found = list(_HEADING.finditer(text))
    whole: dict[str, str] = {}
    for i, heading in enumerate(found):
        end = next((later.start() for later in found[i + 1 :] if len(later[1]) <= len(heading[1])), len(text))
        name = heading[2] or heading[3] or heading[4].strip()
        if name in whole:
            raise SwarmKVError(f"two sections of the text are called {name!r}: give each a number of its own")
        whole[name] = text[heading.start() : end]
    return whole


def parts(text: str, n: int) -> list[str]:
    """A Markdown text in n parts of about the same length, cut at headings of the second level.

    Raises SwarmKVError where there are too few of those.
    """
    starts = [heading.start() for heading in _HEADING.finditer(text) if heading[1] == "##" and heading.start()]
    cuts = sorted({min(starts, key=lambda at: abs(at - i * len(text) / n), default=0) for i in range(1, n)})
    if len(cuts) != n - 1:
        raise SwarmKVError(f"the text has {len(starts)} headings where it can be cut, too few for {n} parts")
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _question(row: Any, where: str) -> Question:
    known = [field.name for field in fields(Question)]
    if not isinstance(row, dict) or not {"id", "kind", "level", "question"} <= row.keys() <= {*known}:
        raise SwarmKVError(f"{where}: it must have id, kind, level and question, and else only {', '.join(known[4:])}")
    try:
        return Question(**row)
    except SwarmKVError as error:
        raise SwarmKVError(f"{where}: {error}") from error


def _require_texts(name: str, value: Any, kind: str, least: int = 1) -> None:
    is_list = isinstance(value, list | tuple) and len(value) >= least
    if not is_list or not all(isinstance(one, str) and one.strip() for one in value):
        raise SwarmKVError(f"{name} has {value!r}, and it must be {kind}")
