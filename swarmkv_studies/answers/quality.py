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


def accuracy(scored: pd.DataFrame) -> pd.DataFrame:
    """The share of right answers, a row per group: n, right, accuracy, and its 95 % interval by Wilson, low and high.

    scored: from ``score``; of a study that was repeated, the first time. A group is a model in an arm.
    """
    groups = _first(scored).groupby(["model", "arm"], sort=False).right
    frame = pd.DataFrame({"n": groups.size(), "right": groups.sum().astype(int)}).reset_index()
    low, high = zip(*map(wilson, frame.right, frame.n), strict=True)
    return frame.assign(accuracy=frame.right / frame.n, low=low, high=high)


def differences(scored: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """What becomes of the baseline's answers in each other arm: a row per model and arm.

    Columns n (answers), changed (of which so many are other tokens), became_right, became_wrong, and p, by McNemar's
    exact test: how probable such a difference, or a larger one, between these two is if right and wrong are equally
    likely. Of a study that was repeated, the first time counts. Raises SwarmKVError where the baseline lacks an answer.
    """
    first = _first(scored)
    reference = first[first.arm == baseline].set_index(["model", "id"])
    rows = []
    for (model, arm), answers in first[first.arm != baseline].groupby(["model", "arm"], sort=False):
        mine = answers.set_index(["model", "id"])
        known = mine.index.isin(reference.index).sum()
        if known < len(mine):
            raise SwarmKVError(
                f"{arm} has {len(mine):,} answers of {model}, and {baseline} has {known:,} of these: complete the study"
            )
        theirs = reference.loc[mine.index]
        changed = mine.token_hash != theirs.token_hash
        better = int((changed & mine.right & ~theirs.right).sum())
        worse = int((changed & ~mine.right & theirs.right).sum())
        rows.append((model, arm, len(mine), int(changed.sum()), better, worse, mcnemar(better, worse)))
    return pd.DataFrame(rows, columns=["model", "arm", "n", "changed", "became_right", "became_wrong", "p"])


def quality(scored: pd.DataFrame, reference: Callable[[str], str] = lambda arm: BASELINE) -> pd.DataFrame:
    """``accuracy`` and ``differences`` side by side, a row per model and arm; reference: of an arm, the one to compare.

    Columns model, arm, right, n, low and high (Wilson's interval of the share of right answers), changed, became_right,
    became_wrong and p, which are empty for the reference itself.
    """
    of_arm = scored.arm.map(reference)
    changes = [differences(scored[of_arm == name], name).drop(columns="n") for name in dict.fromkeys(of_arm)]
    right = accuracy(scored)[["model", "arm", "right", "n", "low", "high"]]
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
