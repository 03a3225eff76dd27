"""Pages and join: a state cut and put together again; the head computed while the tail is loaded, to the same bits."""

import io
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab
from swarmkv_studies.many_machines import join as joining
from swarmkv_studies.many_machines.join import join, load_pages
from swarmkv_studies.many_machines.pages import PageReader, assembled, save_in_pages

PAGE = 64
WHOLE = [name for name in SHAPES if name != "sliding window"]


def prefilled(model, document, **how):
    return lab.prefill(model, document, n_batch=PAGE, progress=False, **how)


@pytest.fixture
def paged(twin, document, tmp_path):
    snapshot = prefilled(twin, document)
    save_in_pages(snapshot, tmp_path / "doc.pages", PAGE)
    return tmp_path / "doc.pages", snapshot


@pytest.mark.parametrize("how", [
    {}, {"flash_attn": True}, {"kv_type": "q8_0"}, {"kv_unified": False, "n_seq_max": 2},
])  # fmt: skip
@pytest.mark.parametrize("shape", WHOLE)
def test_a_state_cut_in_pieces_is_the_same_again(shape, how, document, tmp_path):
    with load_shape(shape, tmp_path) as model:
        try:
            snapshot = prefilled(model, document, **how)
        except lab.SwarmKVError:
            pytest.skip("this shape cannot have these settings")
        pieces = [assembled([snapshot.state()], slice(i, i + PAGE)) for i in range(0, 300, PAGE)]
        assert all(piece.nbytes < snapshot.nbytes / 3 for piece in pieces)
        states = [lab.SequenceState(piece, model.geometry) for piece in pieces]
        np.testing.assert_array_equal(assembled(states), snapshot.data)
        save_in_pages(snapshot, tmp_path / "doc.pages", PAGE)
        loaded = load_pages(tmp_path / "doc.pages", model)
        np.testing.assert_array_equal(loaded.data, snapshot.data)
        assert loaded.identity == snapshot.identity


class Gated(io.RawIOBase):
    """A file of which so many bytes are there, until it is told of more."""

    def __init__(self, data, ready):
        self.data, self.ready, self.at = data, ready, 0
        self.more = threading.Event()

    def readable(self):
        return True

    def readinto(self, room):
        if self.at == self.ready:
            assert self.more.wait(30)
            self.ready = len(self.data)
        n = min(len(room), self.ready - self.at)
        room[:n] = self.data[self.at : self.at + n]
        self.at += n
        return n


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("pages", range(6))
def test_every_cut_gives_the_same_bits(twin, document, tmp_path, monkeypatch, pages, flash_attn):
    """So many pages can be loaded, of five; the others must be computed."""
    snapshot = prefilled(twin, document, flash_attn=flash_attn)
    save_in_pages(snapshot, tmp_path / "doc.pages", PAGE)
    data = (tmp_path / "doc.pages").read_bytes()
    decoded, decode = [], lab.Context.decode
    with open(tmp_path / "doc.pages", "rb") as file:
        reader = PageReader(file, len(data), "doc")
        ends = [file.tell()] + [file.tell() for _ in reader]
    file = Gated(data, ends[pages])
    if pages == 5:
        file.more.set()

    @contextmanager
    def reading(path):
        yield file, len(data)
        file.close()

    def slowly(ctx, ids, *args, **how):
        until = time.monotonic() + 10
        while len(tails[0]._loaded) < pages and time.monotonic() < until:
            time.sleep(0.001)
        decoded.append(len(ids))
        return decode(ctx, ids, *args, **how)

    tails, enter = [], joining._Tail.__enter__
    monkeypatch.setattr(joining._Tail, "__enter__", lambda tail: tails.append(tail) or enter(tail))
    monkeypatch.setattr(lab.Context, "decode", slowly)
    joined = join("doc.pages", twin, opened=reading)
    file.more.set()
    np.testing.assert_array_equal(joined.data, snapshot.data)
    assert joined.identity == snapshot.identity
    assert sum(decoded) <= max(PAGE, 300 - PAGE * (pages - 1)) if pages else sum(decoded) == 300


def test_a_damaged_page_is_computed_and_said(twin, paged):
    path, snapshot = paged
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1  # in the page that comes last in the file: the document's first tokens
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="computed"):
        np.testing.assert_array_equal(join(path, twin).data, snapshot.data)
    with pytest.raises(lab.SnapshotCorruptError):
        load_pages(path, twin)


def test_any_flipped_byte_is_found(twin, paged):
    path, _ = paged
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for at in [*range(24), *rng.integers(0, len(data), 60)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises((lab.SnapshotCorruptError, lab.SnapshotMismatchError)):
            load_pages(path, twin)
    for n in (0, 8, 15, 16, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        with pytest.raises(lab.SnapshotCorruptError):
            load_pages(path, twin)


def test_windows_are_refused_unless_they_hold_everything(document, tmp_path):
    with load_shape("sliding window", tmp_path) as model:
        with pytest.raises(lab.SwarmKVError, match=r"32 .* 300"):
            save_in_pages(prefilled(model, document), tmp_path / "doc.pages", PAGE)
        snapshot = prefilled(model, document, swa_full=True)
        save_in_pages(snapshot, tmp_path / "doc.pages", PAGE)
        np.testing.assert_array_equal(join(tmp_path / "doc.pages", model).data, snapshot.data)


def test_another_models_pages_are_refused(paged, tmp_path):
    with load_shape("one layer", tmp_path) as other, pytest.raises(lab.SnapshotMismatchError):
        join(paged[0], other)
    with pytest.raises(lab.SwarmKVError, match="page=10"):
        save_in_pages(paged[1], tmp_path / "x", 10)
