"""Codecs: bits that come back, bytes to the byte, and what the reference says of them."""

import numpy as np
import pytest
from conftest import load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_studies.many_machines import codecs
from swarmkv_studies.many_machines.shipping import codec_break_even


def test_twelve_bits_of_each_element(rng):
    elements = rng.integers(0, 1 << 16, 1000, dtype=np.uint16)
    packed = codecs.pack_12_bits(elements)
    assert packed.nbytes == 1500
    assert (codecs.unpack_12_bits(packed) == elements & 0xFFF0).all()
    assert (codecs.unshuffle(codecs.shuffle(elements)) == elements).all()
    assert codecs.shuffle(np.array([0x0102, 0x0304], np.uint16)) == bytes([2, 4, 1, 3])


def test_codecs_of_a_model(tmp_path, document):
    none = (lambda data: data, bytes)
    with load_shape("wide heads", tmp_path) as model:
        table = codecs.codecs(model, document[:80], 16, repeats=1, others={"none": none}).set_index("name")
        raw = 64 * model.geometry.bytes_per_token()
    assert table.bytes["none"] == table.bytes["none, shuffled"] == raw
    assert table.bytes["12 bits"] == raw * 3 / 4
    assert table.bytes["q8_0"] == table.bytes["q8_0 cache"] == raw * 17 / 32
    assert table.bytes["q4_0"] == table.bytes["q4_0 cache"] == raw * 9 / 32
    assert table.ratio["12 bits"] == pytest.approx(4 / 3)
    lossless = [name for name in table.index if name.split(" ")[0].strip(",") in ("zlib", "bz2", "lzma", "none")]
    assert (table.max_abs_logit_diff[lossless] == 0).all()
    assert table.kl_mean["q8_0"] < table.kl_mean["q4_0"]


def test_a_codec_that_loses_bits_is_refused(twin, document):
    broken = (lambda data: data, lambda data: bytes(len(data)))
    with pytest.raises(lab.SwarmKVError, match=r"broken.*\d"):
        codecs.codecs(twin, document[:40], 8, repeats=1, others={"broken": broken})
    with pytest.raises(lab.SwarmKVError, match=r"continuation=40.* 39"):
        codecs.codecs(twin, document[:40], 40)


def test_the_reference_says_what_codecs_are_worth():
    """No lossless codec pays over 1 Gbit per second. q8_0 has fewer bytes than 12 bits, and is as near to the noise."""
    table = studies.measurements().codecs.set_index("name")
    exact = table[table.kl_mean == 0]
    assert exact.ratio.max() < 1.2
    assert codec_break_even(exact.ratio, exact.compress_mb_per_s, exact.decompress_mb_per_s).max() < 125
    floor, twelve, q8_0, q4_0 = (table.kl_mean[name] for name in (codecs.FLOOR, "12 bits", "q8_0", "q4_0"))
    assert q8_0 < twelve < 1.3 * floor < q4_0
    assert table.bytes["q8_0"] < table.bytes["12 bits"]
    assert (table.bytes * table.ratio).round().nunique() == 1


def test_the_figure_says_what_is_saved_and_leaves_out_what_needs_no_codec():
    table = studies.measurements().codecs
    figure = studies.codecs_figure(table)
    exact = table[table.kl_mean == 0]
    assert f"save at most {100 - 100 / exact.ratio.max():.0f} %; q8_0 saves 47 %" in figure.get_label()
    bars = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(bars) == 3 + exact.name.str.split(",").str[0].nunique()
    assert not any("cache" in bar for bar in bars)
