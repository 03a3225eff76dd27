"""Hostile snapshot files: whatever their bytes are, they are refused in words, and nothing reaches llama.cpp."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import zoo
from conftest import SHAPES, load_shape, often
from hypothesis import example, given, settings
from hypothesis import strategies as st

import swarmkv_lab as lab
from swarmkv_lab.snapshot.file import SnapshotHeader

TOKENS = np.arange(40, dtype=np.int32)
KINDS = [("f16", False), ("q8_0", True), ("f32", False), ("bf16", True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with load_shape("one layer", tmp_path_factory.mktemp("twin")) as model:
        yield model


@pytest.fixture(scope="module")
def snapshots(model):
    return [lab.prefill(model, TOKENS, kv_type=kv_type, flash_attn=flash, progress=False) for kv_type, flash in KINDS]


@pytest.fixture(scope="module")
def files(snapshots, tmp_path_factory):
    """Also of models whose damaged states llama.cpp itself accepts."""
    made = [b"".join(snapshot._parts) for snapshot in snapshots]
    for kind in ("qwen35", "deepseek32"):
        with lab.load_model(zoo.write(kind, tmp_path_factory.mktemp(kind) / "zoo.gguf")) as other:
            made.append(b"".join(lab.prefill(other, TOKENS, progress=False)._parts))
    return made


def forged(snapshot, data=None, tokens=None, metadata=(), **identity):
    """A file whose checksums all hold, as a stranger could write it."""
    data = snapshot.data if data is None else data
    tokens = snapshot.tokens if tokens is None else tokens
    header = SnapshotHeader.of(replace(snapshot.identity, **identity), tokens, data)
    header.metadata.update(metadata)
    header.metadata["header_checksum"] = header._seal(tokens)
    return header.render() + tokens.tobytes() + data.tobytes()


def read(data):
    return lab.KVSnapshot._read(io.BytesIO(data), len(data), "the buffer")[0]


def refused(data):
    with pytest.raises(lab.SnapshotCorruptError):
        read(data)


# -- bytes that nobody sealed


@pytest.mark.soak
@settings(max_examples=often(5000), deadline=None)
@given(data=st.data())
def test_any_changed_byte_and_any_other_length_is_refused(files, data):
    """Half of the changes are in the header, where the smallest ones count."""
    whole = data.draw(st.sampled_from(files))
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1) | st.integers(0, len(whole) - 1))
    bits = data.draw(st.integers(1, 255))
    flipped = whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]
    refused(data.draw(st.sampled_from([whole[:at], whole + bytes(bits), flipped])))


HEADERS = [
    *(b"", b"{}", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"{" * 20_000, b"[" * 20_000),
    b'{"__metadata__":{},"kv":{"shape":[1]},"tokens":{"shape":[1]}}',
    b'{"__metadata__":[],"kv":{"shape":[-1]},"tokens":{"shape":[1e999]}}',
    b'{"__metadata__":{"header_checksum":5,"format":[]},"kv":{"shape":["9"]},"tokens":{"shape":[true]}}',
    b'{"__metadata__":{},"kv":{"shape":[' + b"9" * 5000 + b']},"tokens":{"shape":[1]}}',
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_headers_that_are_something_else(header):
    refused(header)
    refused(len(header).to_bytes(8, "little") + header + bytes(64))


# -- what a stranger sealed


@pytest.mark.parametrize(("change", "words"), [
    ({"model": "0" * 32}, "model"),
    ({"state_version": 1}, "state_version 1"),
    ({"llama_cpp": "llama-cpp-python 0.2.0"}, "0.2.0"),
    ({"architecture": "gemma3"}, "gemma3"),
    ({"geometry": replace(SHAPES["one layer"], n_layer=3)}, "n_layer=3"),
    ({"geometry": None}, "None"),
    ({"metadata": {"format": "swarmkv-snapshot/1"}}, "snapshot/1"),
    ({"metadata": {"format": "swarmkv-snapshot/3", "novelty": "yes"}}, "snapshot/3"),
])  # fmt: skip
def test_what_belongs_elsewhere_is_named_on_load(snapshots, model, tmp_path, change, words):
    (tmp_path / "doc").write_bytes(forged(snapshots[0], **change))
    with pytest.raises(lab.SnapshotMismatchError, match=words):
        lab.KVSnapshot.load(tmp_path / "doc", model)


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(), lambda x: st.lists(x, max_size=3))
_SHAPE = st.dictionaries(
    st.sampled_from(["n_layer", "n_head_kv", "head_dim_k", "head_dim_v", "n_ctx_train", "window", "swa", "x"]),
    st.integers() | st.lists(st.integers(), max_size=3) | st.text(max_size=3),
    max_size=7,
)


@pytest.mark.soak
@settings(max_examples=often(2000), deadline=None)
@given(
    name=st.sampled_from(["geometry", "kv_type", "flash_attn", "state_version", "swa_full"]),
    value=st.text(max_size=20) | (_JSON | _SHAPE).map(json.dumps),
)
@example("kv_type", '["f16", "q8_0"]')
@example("kv_type", '["q8_0", "f16"]')
@example("flash_attn", "true")
@example("flash_attn", "1")
@example("flash_attn", '"prefill"')
def test_any_other_value_in_a_header_is_refused(snapshots, model, name, value):
    snapshot = snapshots[0]
    try:
        loaded = read(forged(snapshot, metadata={name: value}))
    except (lab.SnapshotCorruptError, lab.SnapshotMismatchError):
        return
    if loaded.identity != snapshot.identity:  # it is another context's
        with model.context(256) as ctx, pytest.raises(lab.SnapshotMismatchError):
            loaded.restore(ctx)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, 7), (0, -1), (0, 2**31 - 1), (1, 0), (1, 2), (2, 5)],  # position, sequences of the cell, the first of them
)
def test_cells_that_a_capture_does_not_write(snapshots, model, column, value):
    snapshot = snapshots[0]
    refused(forged(snapshot, tokens=np.resize(TOKENS, 41 if value % 2 else 39)))  # nor so many tokens
    data = snapshot.data.copy()
    first = int(snapshot.state().parts.set_index("part").offset["cells' positions and sequences"])
    data[first + 9 * 12 : first + 10 * 12].view("<i4")[column] = value
    refused(forged(snapshot, data))
    late = lab.KVSnapshot(data, snapshot.tokens, snapshot.identity)
    with model.context(256) as ctx:
        for _ in range(2):
            with pytest.raises(lab.SnapshotCorruptError):
                late.restore(ctx)
        assert ctx.n_past() == 0


@pytest.mark.soak
@settings(max_examples=often(2000), deadline=None)
@given(data=st.data())
def test_a_state_that_was_changed_never_ends_the_process(snapshots, model, data):
    """Any field but the numbers of K and V themselves: refused. Those are only numbers."""
    which = data.draw(st.integers(0, len(KINDS) - 1))
    snapshot, (kv_type, flash_attn) = snapshots[which], KINDS[which]
    parts = snapshot.state().parts
    part = parts.iloc[data.draw(st.integers(0, len(parts) - 1))]
    changed = snapshot.data.copy()
    changed[part.offset + data.draw(st.integers(0, part.bytes - 1))] ^= data.draw(st.integers(1, 255))
    if not part.part.startswith(("K of", "V of")) or ":" in part.part:
        refused(forged(snapshot, changed))
        return
    with model.context(256, kv_type=kv_type, flash_attn=flash_attn) as ctx:
        read(forged(snapshot, changed)).restore(ctx)
        ctx.decode([1, 2, 3])
