"""Wording: the same words in one form, so that an answer can be compared with what it should say."""

import re
import unicodedata

from swarmkv_lab.errors import SwarmKVError

PATTERN = "re:"
"""begins a wording that is a regular expression"""
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_SHORT = {month[:3]: month for month in _MONTHS} | {"sept": "september"}
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_DAY = re.compile(rf"\b({'|'.join(_MONTHS)}) (\d\d?)(?=$| )")
_DAY_OF = re.compile(rf"\b(\d\d?) of (?={'|'.join(_MONTHS)}\b)")
_CLAUSE_ENDS = re.compile(r"[,;!?](?=\s)|[.:](?=\s|$)|\n")
_NEGATIONS = {"not", "never", "neither", "nor", "without", "instead"}
_NO_NEGATION = re.compile(r"\bnot (?:only|merely|just)\b")
_FILLERS = {"a", "about", "an", "at", "by", "for", "in", "of", "on", "the", "to", "under"}


def normalise(text: str) -> str:
    """Words and numbers of a text in one form: no case, no punctuation, 67400 for 67,400, 30 june 2024 for 2024-06-30.

    Numbers up to 99 are digits, months are written out, and a month's day stands before it. Numbers are read as in
    English: 67.400 is less than a hundred.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"\bcan(?:not|'t)\b", "can not", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\bno\.\s*(?=\d)", "", text)
    text = re.sub(r"\b(\d{4})-(0[1-9]|1[0-2])-(\d\d)", _written_out, text)
    text = re.sub(r"\b0,(?=\d)|(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=\d)[,'](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d:])0(?=\d:\d\d)", "", text)
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text)
    text = re.sub(r"(?<=[a-z])v(?=\d)", " v", text)
    words: list[str] = []
    for word in re.findall(r"\d+(?:[.:]\d+)*|[^\W\d_]+", text):
        if words and words[-1] in _TENS and 0 < _NUMBERS.get(word, 0) < 10:
            words[-1] = str(_NUMBERS[words[-1]] + _NUMBERS[word])
        else:
            words.append(word.rstrip("0").rstrip(".") if re.fullmatch(r"\d+\.\d+", word) else word)
    text = " ".join(str(_NUMBERS.get(word, _SHORT.get(word, word))) for word in words)
    return _DAY.sub(r"\2 \1", _DAY_OF.sub(r"\1 ", text))


def says(text: str, wording: str) -> bool:
    """Whether a text contains a wording, both normalised, as whole words and not behind a "not" of the same clause.

    A wording that begins with "re:" is a regular expression for a clause of the normalised text.
    """
    for clause in map(normalise, _CLAUSE_ENDS.split(text)):
        for place in pattern(wording).finditer(clause):
            if not _is_negated(_NO_NEGATION.sub("", clause[: place.start()]).split()):
                return True
    return False


def pattern(wording: str) -> re.Pattern[str]:
    """What finds a wording in normalised text. Raises SwarmKVError for one that finds nothing, or that finds all."""
    plain = not wording.startswith(PATTERN)
    expression = re.escape(normalise(wording)) if plain else wording.removeprefix(PATTERN)
    if not plain and re.search(r"(?<!\\)[A-Z]|\d,\d", expression):
        raise SwarmKVError(f"the wording {wording!r} has capitals or commas in numbers, and normalised text has none")
    try:
        compiled = re.compile(rf"(?<!\S)(?:{expression})(?!\S)")
    except re.error as error:
        raise SwarmKVError(f"the wording {wording!r} is no regular expression: {error}") from error
    if compiled.fullmatch("") is not None:
        raise SwarmKVError(f"the wording {wording!r} has no words: every answer would contain it")
    return compiled


def _is_negated(before: list[str]) -> bool:
    """Whether one of the two words before denies what comes, or the last one that is not as small as "under the"."""
    large = next((word for word in reversed(before) if word not in _FILLERS), "")
    return before[-2:] == ["rather", "than"] or not _NEGATIONS.isdisjoint([*before[-2:], large])


def _written_out(date: re.Match[str]) -> str:
    return f"{int(date[3])} {_MONTHS[int(date[2]) - 1]} {date[1]} "
