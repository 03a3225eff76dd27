"""Forks: the bytes of n answers from one state, predicted to the byte; and how their scores are drawn."""

import numpy as np
import pandas as pd
import pytest
from conftest import load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.best_of_n.forks import fork_bytes


@pytest.mark.parametrize("kv_type", ["f16", ("f32", "f16")])
def test_shared_and_copied_bytes_are_predicted_to_the_byte(twin, document, kv_type):
    with twin.context(512, n_seq_max=16, kv_type=kv_type) as ctx:
        ctx.decode(np.resize(document, 100))
        frame = fork_bytes(ctx, [1, 3, 15], n_tokens=7)
        assert (frame.shared == frame.shared_predicted).all()
        assert (frame.copied == frame.copied_predicted).all()
        assert frame.copied.iloc[-1] > 6 * frame.shared.iloc[-1]
        assert [ctx.n_past(i) for i in range(16)] == [100] + [0] * 15
        with pytest.raises(lab.SwarmKVError, match="16 forks were asked for"):
            fork_bytes(ctx, [16], n_tokens=7)
    assert "predicted to the byte" in studies.fork_bytes(frame).get_label()
    assert "within 5 bytes" in studies.fork_bytes(frame.assign(shared=frame.shared + 5)).get_label()


def test_windows_have_no_formula(tmp_path):
    with load_shape("sliding window", tmp_path) as model, model.context(64, n_seq_max=2) as ctx:
        ctx.decode(np.arange(9, dtype=np.int32))
        with pytest.raises(lab.SwarmKVError, match="sliding windows"):
            fork_bytes(ctx, [1], n_tokens=2)


def test_the_best_answer_leads_from_where_no_other_is_above_it():
    frame = pd.DataFrame({"logprobs": [[-1.0, -1.0, -0.1, -0.1], [-0.5, -0.9, -2.0], [-3.0]]})
    figure = studies.best_answers(frame)
    assert "The best of 3 answers leads from its token 3 on" in figure.get_label()  # the means are -1, -1, -0.7, -0.55
    ends = sorted(line.get_xdata()[-1] for line in figure.axes[0].lines if line.get_marker() == "o")
    assert ends == [1, 3, 4]
