"""Weight formats measured: what is in the table, in turns, beside the source's own predictions."""

import numpy as np
import pandas as pd
import pytest

import swarmkv_lab as lab
from swarmkv_lab import files
from swarmkv_lab.files import REFERENCE
from swarmkv_lab.llama.requantize import WEIGHT_FORMATS
from swarmkv_studies.peers import formats

COLUMNS = "format file_bytes n_tokens repeats prefill_ms branch_ms token_ms kl_mean kl_max top1"
pytestmark = pytest.mark.filterwarnings("ignore:.*are in a larger format")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_formats_beside_their_source(twin, document, monkeypatch):
    turns = []

    def timed(ctx, tokens):
        turns.append(ctx.model.path)
        return np.array([1, 10, 100]) * len(turns)

    monkeypatch.setattr(formats, "_times", timed)
    how = {"repeats": 3, "continuation": 9, "progress": False}
    frame = formats.weight_formats(twin.path, document, ["q8_0", "q4_0"], **how)
    assert list(frame) == COLUMNS.split()
    assert list(frame.format) == ["unknown", "q8_0", "q4_0"]  # a twin's metadata does not name its own
    assert turns[:3] == turns[3:6] == turns[6:]  # in turns
    assert list(frame.prefill_ms) == [4, 5, 6]  # the middle one of 1, 4, 7
    assert list(frame.token_ms) == [400, 500, 600]
    assert list(frame.file_bytes) == [path.stat().st_size for path in turns[:3]]
    assert frame.loc[0, ["kl_mean", "kl_max", "top1"]].tolist() == [0, 0, 1]
    assert 0 < frame.kl_mean[1] < frame.kl_mean[2] < frame.kl_max[2]


def test_a_source_that_is_one_of_the_formats_has_one_row(twin, document):
    source = lab.requantize(twin, "q8_0", progress=False)
    frame = formats.weight_formats(source, document[:40], ["q8_0", "f16"], repeats=1, continuation=4, progress=False)
    assert list(frame.format) == ["q8_0", "f16"]
    assert (frame[["prefill_ms", "branch_ms", "token_ms"]] > 0).all().all()


@pytest.mark.parametrize("wrong", [{"formats": ["q9"]}, {"continuation": 40}, {"repeats": 0}, {"kv_types": "f16"}])
def test_what_cannot_be_measured(twin, document, wrong):
    with pytest.raises(lab.SwarmKVError):
        formats.weight_formats(twin.path, document[:40], **{"formats": ["q8_0"], "progress": False} | wrong)


def test_the_reference_has_the_formats_and_columns_of_today():
    reference = pd.read_csv(REFERENCE / "formats.csv")
    assert list(reference) == [*COLUMNS.split(), "machine"]
    assert list(reference.format) == ["q4_1", *formats.FORMATS]
    assert set(formats.FORMATS) < set(WEIGHT_FORMATS)
