"""Quality: how many answers of a study are right, and whether another way to answer changes that."""

from collections.abc import Sequence
from math import comb, sqrt
from pathlib import Path

import pandas as pd

from swarmkv_lab.analysis.questions import Question
from swarmkv_lab.analysis.score import passage
from swarmkv_lab.analysis.timeline import BASELINE
from swarmkv_lab.errors import SwarmKVError

_Z = 1.959964
"""standard deviations of the normal distribution within which 95 % lie"""


def read_study(path: Path) -> pd.DataFrame:
    """The answers that measure.study.study keeps in a CSV file."""
    return pd.read_csv(path, keep_default_na=False, dtype={"token_hash": str})  # "None" is an answer, "1e5" a hash


def accuracy(scored: pd.DataFrame, by: tuple[str, ...] = ("model", "arm")) -> pd.DataFrame:
    """The share of right answers, a row per group: n, right, accuracy, and its 95 % interval by Wilson, low and high.

    scored: from ``score``, of a study. by: columns that make a group, such as ("model", "arm", "level").
    """
    groups = scored.groupby(list(by), sort=False).right
    frame = pd.DataFrame({"n": groups.size(), "right": groups.sum().astype(int)}).reset_index()
    bounds = [wilson(right, n) for right, n in zip(frame.right, frame.n, strict=True)]
    low, high = zip(*bounds, strict=True)
    return frame.assign(accuracy=frame.right / frame.n, low=low, high=high)


def differences(scored: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """What becomes of the baseline's answers in each other arm: a row per model and arm.

    Columns n (answers), changed (of which so many are other tokens), became_right, became_wrong, and p, by McNemar's
    exact test: how probable such a difference, or a larger one, between these two is if right and wrong are equally
    likely. Raises SwarmKVError for a study without the baseline.
    """
    key = ["model", "repeat", "id"]
    reference = scored[scored.arm == baseline].set_index(key)
    if reference.empty:
        raise SwarmKVError(f"the study has no answers of {baseline}: there is nothing to compare with")
    rows = []
    for (model, arm), answers in scored[scored.arm != baseline].groupby(["model", "arm"], sort=False):
        mine = answers.set_index(key)
        theirs = reference.reindex(mine.index)
        changed = mine.token_hash != theirs.token_hash
        better = int((changed & mine.right & ~theirs.right.astype(bool)).sum())
        worse = int((changed & ~mine.right & theirs.right.astype(bool)).sum())
        rows.append((model, arm, len(mine), int(changed.sum()), better, worse, mcnemar(better, worse)))
    return pd.DataFrame(rows, columns=["model", "arm", "n", "changed", "became_right", "became_wrong", "p"])


def side_by_side(scored: pd.DataFrame, questions: Sequence[Question], text: str, arm: str = BASELINE) -> pd.DataFrame:
    """Questions with each model's answer, marked right (✓) or wrong (✗), and the passage of the text that decides."""
    rows = scored[(scored.arm == arm) & (scored.repeat == 0)]
    answers = {(row.model, row.id): f"{'✓' if row.right else '✗'} {row.answer}" for row in rows.itertuples()}
    models = list(dict.fromkeys(rows.model))
    return pd.DataFrame(
        {
            "question": [question.question for question in questions],
            **{model: [answers[model, question.id] for question in questions] for model in models},
            "the dossier says": [passage(question, text) for question in questions],
        },
        index=[question.id for question in questions],
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (E. B. Wilson, 1927)."""
    middle, spread = right + _Z**2 / 2, _Z * sqrt(right * (n - right) / n + _Z**2 / 4)
    return (middle - spread) / (n + _Z**2), (middle + spread) / (n + _Z**2)


def mcnemar(better: int, worse: int) -> float:
    """The two-sided p of McNemar's exact test: so many pairs changed each way, by chance alone."""
    n = better + worse
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)
