"""Score: whether answers are right, by the words that they must and must not say; no model judges."""

import re
from typing import Any

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_studies.answers.questions import Question, Questions, load_questions, sections
from swarmkv_studies.answers.wording import normalise, says

_SAID = "stated|mentioned|specified|provided|given|named|said|available|known|included|disclosed|found|listed"
_SAID += "|determined|described|identified|clear"
_SAY = "state|mention|specify|provide|give|name|say|include|contain|list|describe|identify|disclose|know|find|answer"
# How an answer says that the document does not.
_UNSTATED = re.compile(
    rf"\bnot (?:be )?(?:\w+ )?(?:{_SAID}|in the (?:\w+ )?(?:document|text|dossier))\b"
    rf"|\bnot (?:\w+ )?(?:{_SAY})\b"
    rf"|\bno (?:\w+ ){{1,4}}?(?:is |are |was |were )?(?:{_SAID})\b"
    r"|\bno (?:\w+ )?(?:information|mention|answer|data|details?)\b|\bthere (?:is|are|was|were) no\b"
    r"|\bunknown\b|\bunspecified\b|\bunstated\b|^none$|^n a$"
)


def verdict(question: Question, answer: str) -> str:
    """Why an answer is wrong; empty for a right one.

    Right: it says all accepted answers and nothing rejected, and does not begin by saying that they are not stated. To
    a question without answers: it says that, and gives no number that the question does not have.
    """
    if not answer.strip():
        return "no answer"
    for wording in question.rejects:
        if says(answer, wording):
            return f"also says {wording}"
    if not question.answers:
        if not _UNSTATED.search(normalise(answer)):
            return "does not say that it is not stated"
        more = set(normalise(answer).split()) - set(normalise(question.question).split())
        numbers = sorted(word for word in more if word[0].isdigit())
        return f"also says {', '.join(numbers)}" if numbers else ""
    for wordings in question.answers:
        if not any(says(answer, wording) for wording in wordings):
            return f"does not say {' or '.join(wordings)}"
    before, *unstated = _UNSTATED.split(normalise(answer), maxsplit=1)
    accepted = (one for wordings in question.answers for one in wordings)
    return "says that it is not stated" if unstated and not any(says(before, one) for one in accepted) else ""


def passage(question: Question, text: str) -> str:
    """What of a text's sections decides: for each accepted answer, the sentence or line closest to the question."""
    held = sections(text)
    places = "\n".join(held[number] for number in question.sections)
    sentences = [found.strip() for found in re.split(r"\n|(?<=[.!?]) (?=[A-Z])", places) if found.strip()]
    asked = set(normalise(question.question).split())

    def closeness(sentence: str) -> tuple[int, int]:
        return len(asked & set(normalise(sentence).split())), -len(sentence)

    chosen = [
        max((one for one in sentences if any(says(one, wording) for wording in wordings)), key=closeness, default="")
        for wordings in question.answers
    ]
    return " … ".join(dict.fromkeys(chosen)) or "(the document does not say)"


def score(run: Any, questions: Questions = None) -> pd.DataFrame:
    """Which answers are right: a DataFrame, a row per answer: id, kind, level, answer, right, why (it is wrong).

    run: a Run whose agents are named as the questions' ids, a mapping of answers by id, or a DataFrame with the columns
    id and answer, whose other columns are kept. questions: what load_questions takes. Answers and what they should say
    are compared by ``wording.normalise``: the same each time. Raises SwarmKVError for an id that is no question's.
    """
    by_id = {question.id: question for question in load_questions(questions)}
    frame = run
    if not isinstance(run, pd.DataFrame):
        answers = getattr(run, "answers", run)
        frame = pd.DataFrame({"id": list(answers), "answer": list(answers.values())})
    frame = frame.assign(id=frame.id.astype(str), answer=frame.answer.fillna("").astype(str))
    if unknown := [str(name) for name in frame.id.unique() if name not in by_id]:
        raise SwarmKVError(f"no question has the id {', '.join(unknown[:5])}: the ids are {', '.join(by_id)}")
    why = [verdict(by_id[name], answer) for name, answer in zip(frame.id, frame.answer, strict=True)]
    about = {"kind": [by_id[name].kind for name in frame.id], "level": [by_id[name].level for name in frame.id]}
    return frame.assign(**about, right=[not reason for reason in why], why=why)
