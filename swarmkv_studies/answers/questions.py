"""Questions whose answers can be checked, and the sections of the text that hold these answers."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        lists = (self.answers, self.sections, self.rejects, self.absent)
        if not all(isinstance(one, list | tuple) for one in (*lists, *self.answers)) or not all(self.answers):
            raise SwarmKVError(f"{self}: sections, rejects and absent are lists of texts, and answers of lists of them")
        wordings = [*self.rejects, *(one for wordings in self.answers for one in wordings)]
        for text in (self.id, self.kind, self.level, self.question, *self.sections, *self.absent, *wordings):
            if not isinstance(text, str) or not text.strip():
                raise SwarmKVError(f"{self}: {text!r} must be a text")
        for wording in wordings:
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
            source = [Question(**row) for row in json.loads(read_text(path))]
        except (ValueError, TypeError, SwarmKVError) as error:  # no JSON, no list of objects, or other fields
            raise SwarmKVError(f"{name} is no list of questions: {error}") from error
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
