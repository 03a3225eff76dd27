"""The study of serving: what it counts, what its figures say, and llama-server beside it where it is built."""

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.peers import build
from swarmkv_studies.serving.bench import COUNTED, LEADING, OURS, ROUND, SHORT, SLOTS, Arm, reviewers


def test_tokens_are_counted(speaker):
    arms = [*COUNTED, Arm(LEADING, OURS), Arm(SHORT, OURS)]
    rows = studies.serving_rounds(speaker, 128, 300, 1, arms=arms, once=(), max_tokens=2)
    sent, computed = rows.prompt_tokens, rows.computed_tokens
    assert (rows.requests[:4] == 8).all()
    assert computed[0] > 0.9 * sent[0]  # roles first, as sent: the template's first words alone are shared
    assert (computed[1:4] < 0.45 * sent[1:4]).all()
    assert rows.end_to_end_ms.notna().tolist() == [True] * 4 + [False]
    assert rows.p95_ttft_ms.notna().tolist() == [False] * 4 + [True]
    assert rows.requests[4] >= 2
    assert "composed" in studies.tokens_by_layout(rows).get_label()
    with pytest.raises(lab.SwarmKVError):
        studies.serving_rounds(speaker, 0)


def test_a_role_may_be_the_same_or_none():
    shapes = {role: [len(body["messages"]) for body in reviewers("x", role)] for role in ("You are {}.", "")}
    assert shapes == {"You are {}.": [2] * 8, "": [1] * 8}


def test_a_gain_is_the_median_of_the_ratios_within_a_round():
    rows = [
        {"repeat": repeat, **arm._asdict(), "end_to_end_ms": ms, "p95_ttft_ms": ms}
        for repeat, pace in enumerate((1, 2, 3))
        for arm in ROUND
        for ms in [100 * pace * (1 if arm.server == OURS else 2 + pace)]
    ]
    figure = studies.beside_llama_server(pd.DataFrame(rows))
    assert "4.0x" in figure.get_label()
    assert len(figure.axes) == 4


@pytest.mark.peers
def test_llama_server_answers_the_same_requests(speaker):
    try:
        build.program("llama-server")
    except lab.SwarmKVError as error:
        pytest.skip(str(error))
    rows = studies.serving_rounds(speaker, 128, 300, 1, once=(), max_tokens=2)
    pairs = rows[rows.work != SHORT].groupby("work").prompt_tokens
    assert (pairs.max() == pairs.min()).all()
    assert (rows.computed_tokens > 0.9 * rows.prompt_tokens)[(rows.server == SLOTS) & (rows.work != SHORT)].all()
