"""Questions whose answers can be checked, and the sections of the text that hold these answers."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import DATA, read_text, user_path

_HEADING = re.compile(r"^(#{2,6}) (?:Appendix )?(?:(\d+(?:\.\d+)*|[A-Z])\.? )?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """``answers``: all of them must be said, each in one of its wordings; none: the right answer is "not stated".

    ``rejects``: what a right answer does not say. ``sections``: numbers or names of those that hold the answers.
    ``absent``: for a question that the document does not answer, words that it would have to use.
    """

    id: str
    kind: str
    level: str
    question: str
    answers: Sequence[Sequence[str]] = ()
    sections: Sequence[str] = ()
    rejects: Sequence[str] = ()
    absent: Sequence[str] = ()


def load_questions(source: str | Path = "dossier") -> list[Question]:
    """The questions that come with a document ("dossier"), or those of a JSON file: a list of objects (Question).

    Raises SwarmKVError for a file that is not such a list, and for two questions of one id.
    """
    bundled = DATA / "documents" / f"{source}.questions.json"
    path = bundled if os.path.isfile(bundled) else user_path(source)
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SwarmKVError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise SwarmKVError(f"{path.name} must be a list of questions, with at least one in it")
    questions = [_question(row, f"{path.name}: question {i}") for i, row in enumerate(rows, 1)]
    ids = [question.id for question in questions]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SwarmKVError(f"{path.name}: two questions have the id {', '.join(twice)}")
    return questions


def sections(text: str) -> dict[str, str]:
    """The sections of a Markdown text by number, or by title where they have none; each with those below it."""
    found = list(_HEADING.finditer(text))
    whole = {}
    for i, heading in enumerate(found):
        end = next((later.start() for later in found[i + 1 :] if len(later[1]) <= len(heading[1])), len(text))
        whole[heading[2] or heading[3]] = text[heading.start() : end]
    return whole


def parts(text: str, n: int) -> list[str]:
    """A Markdown text in n parts of about the same length, cut at headings of the second level.

    Raises SwarmKVError where there are too few of those.
    """
    starts = [heading.start() for heading in _HEADING.finditer(text) if heading[1] == "##"]
    cuts = sorted({min(starts, key=lambda at: abs(at - i * len(text) / n), default=0) for i in range(1, n)})
    if len(cuts) != n - 1:
        raise SwarmKVError(f"the text has {len(starts)} headings of the second level: it cannot be cut in {n} parts")
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _question(row: Any, where: str) -> Question:
    known = {field.name: field.type for field in fields(Question)}
    if not isinstance(row, dict) or not {"id", "kind", "level", "question"} <= row.keys() <= known.keys():
        raise SwarmKVError(f"{where}: it must have id, kind, level and question, and else only {', '.join(known)}")
    for name, value in row.items():
        lists = value if name == "answers" else [[value] if known[name] is str else value]
        if not isinstance(lists, list) or not all(_are_texts(texts) for texts in lists):
            kind = {"answers": "a list of lists of texts"}.get(name, "a text" if known[name] is str else "texts")
            raise SwarmKVError(f"{where}: {name} is {value!r}, and it must be {kind}")
    return Question(**row)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)
