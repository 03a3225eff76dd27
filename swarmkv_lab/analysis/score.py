"""Score: whether answers are right, by the words that they must and must not say; no model judges."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from swarmkv_lab.analysis.questions import Question, load_questions, sections
from swarmkv_lab.errors import SwarmKVError

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_SHORT = {month[:3]: month for month in _MONTHS} | {"sept": "september"}
_UP_TO_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_NUMBERS = {word: str(i) for i, word in enumerate(_UP_TO_TWENTY)}
_NEGATIONS = {"not", "never", "nor", "without"}
_DAY = re.compile(rf"\b({'|'.join(_MONTHS)}) (\d\d?)(?=$| )")
# How an answer says that the document does not.
_UNSTATED = re.compile(
    r"\bnot (?:be )?(?:\w+ )?(?:stated|mentioned|specified|provided|given|named|said|available|known|included|disclosed"
    r"|found|listed|determined|described|identified|in the (?:document|text|dossier))\b"
    r"|\bnot (?:\w+ )?(?:state|mention|specify|provide|give|name|say|include|contain|list|describe|identify|disclose)\b"
    r"|\bno (?:\w+ )?(?:information|mention|answer|data|details?)\b|\bunknown\b|\bunspecified\b|\bunstated\b"
)


def normalise(text: str) -> str:
    """Words and numbers of a text in one form: no case, no punctuation, 67400 for 67,400, 30 june 2024 for 2024-06-30.

    Numbers up to twenty are digits, months are written out, and a month's day stands before it.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"\bcan(?:not|'t)\b", "can not", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\bno\.\s*(?=\d)", "", text)
    text = re.sub(
        r"\b(\d{4})-(0[1-9]|1[0-2])-(\d\d)", lambda at: f"{int(at[3])} {_MONTHS[int(at[2]) - 1]} {at[1]}", text
    )
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d:])0(?=\d:\d\d)", "", text)
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text)
    words = re.findall(r"\d+(?:[.:]\d+)*|[^\W\d_]+", text)
    words = [word.rstrip("0").rstrip(".") if re.fullmatch(r"\d+\.\d+", word) else word for word in words]
    return _DAY.sub(r"\2 \1", " ".join(_NUMBERS.get(word, _SHORT.get(word, word)) for word in words))


def _written_out(date: re.Match[str]) -> str:
    return f"{int(date[3])} {_MONTHS[int(date[2]) - 1]} {date[1]} "


def says(text: str, wording: str) -> bool:
    """Whether a text contains a wording, both normalised, and not only behind a "not"."""
    words, wanted = normalise(text).split(), normalise(wording).split()
    places = [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
    return any(not _NEGATIONS & set(words[max(0, i - 2) : i]) for i in places)


def says_unstated(text: str) -> bool:
    """Whether an answer says that the document does not answer the question."""
    return _UNSTATED.search(normalise(text)) is not None


def verdict(question: Question, answer: str) -> str:
    """Why an answer is wrong; empty for a right one."""
    if not answer.strip():
        return "no answer"
    if not question.answers:
        return "" if says_unstated(answer) else "does not say that it is not stated"
    for wordings in question.answers:
        if not any(says(answer, wording) for wording in wordings):
            return f"does not say {' or '.join(wordings)}"
    for wording in question.rejects:
        if says(answer, wording):
            return f"also says {wording}"
    return "says that it is not stated" if says_unstated(answer) else ""


def passage(question: Question, text: str) -> str:
    """What of a text's sections decides: the shortest sentences or lines that hold the accepted answers."""
    held = sections(text)
    places = "\n".join(held[number] for number in question.sections)
    sentences = [found.strip() for found in re.split(r"\n|(?<=[.!?]) (?=[A-Z])", places) if found.strip()]
    chosen = [
        min((one for one in sentences if any(says(one, wording) for wording in wordings)), key=len, default="")
        for wordings in question.answers
    ]
    return " … ".join(dict.fromkeys(chosen)) or "(the document does not say)"


def score(run: Any, questions: Sequence[Question] | str | None = None) -> pd.DataFrame:
    """Which answers are right: a DataFrame, a row per answer: id, kind, level, answer, right, why (it is wrong).

    run: a Run whose agents are named as the questions' ids, a mapping of answers by id, or a DataFrame with the columns
    id and answer, whose other columns are kept. questions: as load_questions gives them, or what it takes; by default
    those of the dossier. An answer is right if it contains every accepted answer and nothing that is rejected; both are
    compared by ``normalise``. Raises SwarmKVError for an id that is no question's, with those that are.
    """
    if questions is None or isinstance(questions, str):
        questions = load_questions(questions or "dossier")
    by_id = {question.id: question for question in questions}
    frame = _answers(run)
    if unknown := [str(name) for name in frame.id.unique() if name not in by_id]:
        raise SwarmKVError(f"no question has the id {', '.join(unknown[:5])}: the ids are {', '.join(by_id)}")
    why = [verdict(by_id[name], str(answer)) for name, answer in zip(frame.id, frame.answer, strict=True)]
    about = {"kind": [by_id[name].kind for name in frame.id], "level": [by_id[name].level for name in frame.id]}
    return frame.assign(**about, right=[not reason for reason in why], why=why)


def _answers(run: Any) -> pd.DataFrame:
    if isinstance(run, pd.DataFrame):
        if missing := {"id", "answer"} - set(run):
            raise SwarmKVError(f"the frame of answers has no column {' and no '.join(sorted(missing))}")
        return run.assign(answer=run.answer.fillna(""))
    answers = getattr(run, "answers", run)
    if not isinstance(answers, Mapping):
        raise SwarmKVError(f"{type(run).__name__}: pass a Run, answers by question's id, or a DataFrame of them")
    return pd.DataFrame({"id": list(answers), "answer": [str(answer) for answer in answers.values()]})
