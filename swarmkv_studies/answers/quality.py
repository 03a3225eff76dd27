"""Quality: how many answers of a study are right, and whether another way to answer changes that."""

from collections.abc import Callable, Sequence
from math import comb, sqrt
from pathlib import Path

import pandas as pd

from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_studies.answers.questions import Question
from swarmkv_studies.answers.score import passage

_Z = 1.959964
"""standard deviations of the normal distribution within which 95 % lie"""
_WHOLE = ("repeat", "part", "n_prefix", "n_tokens")


def read_study(path: Path) -> pd.DataFrame:
    """The answers that ``study`` keeps in a CSV file, or any CSV with answers; SwarmKVError for what is none.

    All is text but what counts: an answer may be "None" or 0.60, and a hash 1e5.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, dtype=str, index_col=False)
        frame = frame.drop(columns="machine", errors="ignore")  # of the reference: study.json says it too
        return frame.astype({name: int for name in _WHOLE if name in frame})
    except ValueError as error:  # pandas' errors for what is no table, and for numbers that are none
        raise SwarmKVError(f"{path} is no CSV file of answers: {error}") from error


def differences(scored: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """What becomes of the baseline's answers in each other arm: a row per model and arm.

    Columns n (answers), changed (of which so many are other tokens), became_right, became_wrong, and p, by McNemar's
    exact test: how probable such a difference, or a larger one, between these two is if right and wrong are equally
    likely. Of a study that was repeated, the first time counts. Raises SwarmKVError where the baseline lacks an answer.
    """
    first = _first(scored)
    theirs = first.loc[first.arm == baseline, ["model", "id", "token_hash", "right"]]
    pairs = first[first.arm != baseline].merge(theirs, "left", ["model", "id"], suffixes=("", "_before"))
    lacking = pairs[pairs.token_hash_before.isna()]
    if len(lacking):
        arms = ", ".join(lacking.arm.unique())
        raise SwarmKVError(f"{baseline} lacks {len(lacking):,} of the answers of {arms}: complete the study")
    changed, before = pairs.token_hash != pairs.token_hash_before, pairs.right_before.astype(bool)
    better, worse = changed & pairs.right & ~before, changed & ~pairs.right & before
    pairs = pairs.assign(n=1, changed=changed, became_right=better, became_wrong=worse)
    columns = ["n", "changed", "became_right", "became_wrong"]
    frame = pairs.groupby(["model", "arm"], sort=False)[columns].sum().reset_index()
    return frame.assign(p=[*map(mcnemar, frame.became_right, frame.became_wrong)])


def quality(scored: pd.DataFrame, reference: Callable[[str], str] = lambda arm: BASELINE) -> pd.DataFrame:
    """Right answers and ``differences``, a row per model and arm; reference: of an arm, the one to compare with.

    scored: from ``score``; of a study that was repeated, the first time. Columns model, arm, right, n, low and high
    (Wilson's 95 % interval of the share of right answers), changed, became_right, became_wrong and p, which are empty
    for the reference itself.
    """
    of_arm = scored.arm.map(reference)
    changes = [differences(scored[of_arm == name], name).drop(columns="n") for name in dict.fromkeys(of_arm)]
    groups = _first(scored).groupby(["model", "arm"], sort=False).right
    right = pd.DataFrame({"right": groups.sum().astype(int), "n": groups.size()}).reset_index()
    right["low"], right["high"] = zip(*map(wilson, right.right, right.n), strict=True)
    counts = dict.fromkeys(["changed", "became_right", "became_wrong"], "Int64")
    return right.merge(pd.concat(changes).astype(counts), how="left", on=["model", "arm"])


def side_by_side(scored: pd.DataFrame, questions: Sequence[Question], text: str, arm: str = BASELINE) -> pd.DataFrame:
    """Questions with each model's answer, marked right (✓) or wrong (✗), and the passage of the text that decides."""
    rows = _first(scored[scored.arm == arm])
    answers = {(row.model, row.id): f"{'✓' if row.right else '✗'} {row.answer}" for row in rows.itertuples()}
    table = pd.DataFrame({"question": [one.question for one in questions]}, index=[one.id for one in questions])
    for model in dict.fromkeys(rows.model):
        table[model] = [answers.get((model, question.id), "") for question in questions]
    return table.assign(**{"the document says": [passage(question, text) for question in questions]})


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (E. B. Wilson, 1927)."""
    middle, spread = right + _Z**2 / 2, _Z * sqrt(right * (n - right) / n + _Z**2 / 4)
    return (middle - spread) / (n + _Z**2), (middle + spread) / (n + _Z**2)


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p of McNemar's exact test: so many pairs changed each way, by chance alone."""
    n = better + worse
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)


def _first(scored: pd.DataFrame) -> pd.DataFrame:
    """The answers of the first time: greedy ones are the same again, so they would only be counted twice."""
    return scored[scored.repeat == 0] if "repeat" in scored else scored
