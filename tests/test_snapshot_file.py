"""Snapshot files: what was saved comes back bit by bit, what belongs elsewhere is refused, faults leave no debris."""

import copy
import errno
import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHAPES, load_shape, needs, often

import swarmkv_lab as lab
from swarmkv_lab import files as atomic
from swarmkv_lab.snapshot import file as snapshot_file
from swarmkv_lab.snapshot.file import FORMAT, SnapshotHeader

NAME = "doc.kv.safetensors"


@pytest.fixture
def snapshot(twin, document):
    with twin.context(512) as ctx:
        ctx.decode(document)
        return lab.KVSnapshot.capture(ctx, document)


@pytest.fixture
def saved(snapshot, tmp_path):
    snapshot.save(tmp_path / NAME)
    return tmp_path / NAME


def answer(model, snapshot, question, **how):
    with model.context(512, **how) as ctx:
        snapshot.restore(ctx)
        ctx.decode(question)
        return ctx.logits()


def rest(snapshot):
    """What comes after the header."""
    return snapshot.tokens.tobytes() + snapshot.data.tobytes()


def sealed(snapshot, **said):
    """A file whose header says something else, and whose checksums all hold."""
    header = SnapshotHeader.of(snapshot.identity, snapshot.tokens, snapshot.data)
    header.metadata.update(said)
    header.metadata["header_checksum"] = header._seal(snapshot.tokens)
    return header.render() + rest(snapshot)


# -- there and back


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_saved_comes_back(shape, document, question, tmp_path):
    with load_shape(shape, tmp_path) as model:
        with model.context(1024, kv_type="bf16") as ctx:
            ctx.decode(document)
            snapshot = lab.KVSnapshot.capture(ctx, document)
            ctx.decode(question)
            expected = ctx.logits()
        snapshot.save(tmp_path / NAME)
        loaded = lab.KVSnapshot.load(tmp_path / NAME, model)
        assert loaded.identity == snapshot.identity
        np.testing.assert_array_equal(loaded.tokens, document)
        for _ in range(2):
            np.testing.assert_array_equal(answer(model, loaded, question, kv_type="bf16"), expected)
        np.testing.assert_array_equal(loaded.copy().data, snapshot.data)
        np.testing.assert_array_equal(loaded.state().keys(0), snapshot.state().keys(0))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_or_a_pickle_is_checked_and_read_only(make, snapshot, twin, question):
    made = make(snapshot)
    assert made.identity == snapshot.identity
    np.testing.assert_array_equal(answer(twin, made, question), answer(twin, snapshot, question))
    for array in (made.data, made.tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_damaged_pickle_is_refused(snapshot):
    whole = pickle.dumps(snapshot)
    for at in (len(whole) - 1000, len(whole) - snapshot.nbytes - 200):  # in the state, and in the tokens
        with pytest.raises(lab.SnapshotCorruptError):
            pickle.loads(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    buffers = []
    data = pickle.dumps(snapshot, protocol=5, buffer_callback=buffers.append)
    state = bytes(buffers[0])
    np.testing.assert_array_equal(pickle.loads(data, buffers=[state]).data, snapshot.data)
    for broken in (state[:-1], bytes(1) + state[1:]):
        with pytest.raises(lab.SnapshotCorruptError):
            pickle.loads(data, buffers=[broken])


def test_what_cannot_be_pickled_says_so(twin, document):
    run = lab.fan_out(twin, document, [[1]])
    with twin.context(512) as ctx:
        for thing, words in ((twin, "load it again"), (ctx, "capture a snapshot"), (run, "load it again")):
            for make in (pickle.dumps, copy.deepcopy):
                with pytest.raises(lab.SwarmKVError, match=words):
                    make(thing)


def test_a_fresh_process_reads_it(saved, twin, question, snapshot):
    code = (
        "import sys, numpy as np, swarmkv_lab as lab\n"
        "model = lab.load_model(sys.argv[1])\n"
        "ctx = model.context(512)\n"
        "lab.KVSnapshot.load(sys.argv[2], model).restore(ctx)\n"
        "ctx.decode([int(t) for t in sys.argv[3].split()])\n"
        "sys.stdout.buffer.write(ctx.logits().tobytes())"
    )
    asked = " ".join(map(str, question))
    done = subprocess.run([sys.executable, "-c", code, twin.path, saved, asked], capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), answer(twin, snapshot, question))


def test_any_safetensors_reader_can_read_it(saved, snapshot):
    from safetensors import safe_open

    with safe_open(saved, "np") as file:
        assert set(file.keys()) == {"tokens", "kv"}
        np.testing.assert_array_equal(file.get_tensor("tokens"), snapshot.tokens)
        np.testing.assert_array_equal(file.get_tensor("kv"), snapshot.data)
        about = file.metadata()
    assert about["format"] == FORMAT
    assert about["model"] == snapshot.identity.model
    assert about["model_name"] == "twin"
    assert json.loads(about["kv_type"]) == ["f16", "f16"]
    assert {"created", "checksum", "llama_cpp", "state_version", "flash_attn", "geometry"} <= set(about)


def test_the_state_begins_on_a_page_and_is_read_only(saved, twin, snapshot):
    start = saved.stat().st_size - snapshot.nbytes
    assert start % 4096 == 0
    assert saved.read_bytes()[start:] == snapshot.data.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        lab.KVSnapshot.load(saved, twin).data[0] = 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_stays_a_link(snapshot, twin, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / NAME).symlink_to(tmp_path / "real" / NAME)
    snapshot.save(tmp_path / NAME)
    assert (tmp_path / NAME).is_symlink()
    assert (tmp_path / "real" / NAME).stat().st_size > snapshot.nbytes
    lab.KVSnapshot.load(tmp_path / NAME, twin)


# -- what does not belong


def test_another_models_file(saved, tmp_path):
    words = r"model 'twin \w{12}', the context has 'twin \w{12}'"
    with load_shape("one layer", tmp_path) as other, pytest.raises(lab.SnapshotMismatchError, match=words):
        lab.KVSnapshot.load(saved, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state_version": 1}, "state_version 1"),
        ({"llama_cpp": "llama-cpp-python 0.2.0"}, "llama-cpp-python 0.2.0"),
        ({"architecture": "gemma3"}, "architecture 'gemma3'"),
        ({"geometry": replace(SHAPES["two layers"], n_layer=3)}, "n_layer=3"),
    ],
)
def test_another_version_or_shape_is_named_on_load(snapshot, twin, tmp_path, change, words):
    changed = lab.KVSnapshot(snapshot.data, snapshot.tokens, replace(snapshot.identity, **change))
    (tmp_path / NAME).write_bytes(
        SnapshotHeader.of(changed.identity, changed.tokens, changed.data).render() + rest(changed)
    )
    with pytest.raises(lab.SnapshotMismatchError, match=words):
        lab.KVSnapshot.load(tmp_path / NAME, twin)


@pytest.mark.parametrize("seq_id", [-1, 1, 10**9])
def test_a_sequence_that_the_context_does_not_have(saved, twin, seq_id):
    loaded = lab.KVSnapshot.load(saved, twin)
    with twin.context(512) as ctx, pytest.raises(lab.SwarmKVError, match="outside this context's 0 to 0"):
        loaded.restore(ctx, seq_id)


def test_a_rotation_that_the_environment_turned_off(tmp_path, document, monkeypatch):
    with load_shape("one layer", tmp_path) as model:
        with model.context(512, kv_type="q8_0") as ctx:
            ctx.decode(document)
            snapshot = lab.KVSnapshot.capture(ctx, document)
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        with (
            model.context(512, kv_type="q8_0") as ctx,
            pytest.raises(lab.SnapshotMismatchError, match="kv_rotated True"),
        ):
            snapshot.restore(ctx)
        with model.context(512) as ctx:
            ctx.decode(document)
            lab.KVSnapshot.capture(ctx, document).restore(ctx)  # f16 is never rotated


def test_a_state_that_no_formula_knows_is_saved_and_checked_as_a_whole(snapshot, twin, tmp_path):
    odd = lab.KVSnapshot(snapshot.data, snapshot.tokens, replace(snapshot.identity, geometry=None))
    odd.save(tmp_path / NAME)
    with pytest.raises(lab.SnapshotMismatchError):  # it is not what a twin has
        lab.KVSnapshot.load(tmp_path / NAME, twin)
    whole = (tmp_path / NAME).read_bytes()
    again = lab.KVSnapshot.from_bytes(whole)
    np.testing.assert_array_equal(again.data, snapshot.data)
    with pytest.raises(lab.SwarmKVError):
        again.state()
    for at in (len(whole) - 1, len(whole) - snapshot.nbytes // 2):
        with pytest.raises(lab.SnapshotCorruptError):
            lab.KVSnapshot.from_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize("form", ["swarmkv-snapshot/1", "swarmkv-snapshot/3"])
def test_another_format_is_named(snapshot, twin, tmp_path, form):
    """Also the one of earlier versions, whose files say less than a restore must know."""
    (tmp_path / NAME).write_bytes(sealed(snapshot, format=form, novelty="yes"))
    for read in (lambda path: lab.KVSnapshot.load(path, twin), lab.KVSnapshot.describe):
        with pytest.raises(lab.SnapshotMismatchError, match=form):
            read(tmp_path / NAME)


# -- faults


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name != NAME]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_at_the_end(saved, snapshot, monkeypatch, call, error):
    before = saved.read_bytes()

    def fail(*_args):
        raise error

    monkeypatch.setattr(atomic.os, call, fail)
    expected = lab.SwarmKVError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        snapshot.save(saved)
    assert saved.read_bytes() == before
    assert leftovers(saved.parent) == []


@needs(signal, "SIGXFSZ")
def test_a_disk_that_is_full(saved, twin, snapshot):
    """A real limit, of this process's files: the write itself fails in the middle."""
    code = (
        "import resource, signal, sys, numpy as np, swarmkv_lab as lab\n"
        "model = lab.load_model(sys.argv[1])\n"
        "snapshot = lab.KVSnapshot.load(sys.argv[2], model)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n    snapshot.save(sys.argv[2])\n"
        "except lab.SwarmKVError as error:\n    print(error)"
    )
    before = saved.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, twin.path, saved], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{saved} could not be written: File too large; what was there is unchanged"
    assert saved.read_bytes() == before
    assert leftovers(saved.parent) == []


def test_places_that_cannot_be_written(snapshot, tmp_path):
    (tmp_path / "folder").mkdir()
    for path, words in (
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "missing" / NAME, "No such file"),
        (Path("/proc") / NAME, "could not be written"),
    ):
        with pytest.raises(lab.SwarmKVError, match=words):
            snapshot.save(path)
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root, and Windows' users, write everywhere")
def test_a_read_only_folder(saved, snapshot):
    saved.parent.chmod(0o555)
    try:
        with pytest.raises(lab.SwarmKVError, match="Permission denied; what was there is unchanged"):
            snapshot.save(saved)
    finally:
        saved.parent.chmod(0o755)


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        pytest.param(lambda path: os.mkfifo(path), marks=needs(os, "mkfifo")),
        pytest.param(lambda path: path.symlink_to(path), marks=needs(os, "mkfifo")),  # Windows wants a privilege
        lambda _path: None,
    ],
)
def test_places_that_cannot_be_read(twin, tmp_path, make):
    make(tmp_path / NAME)
    with pytest.raises(lab.SwarmKVError, match=f"{NAME} could not be read"):
        lab.KVSnapshot.load(tmp_path / NAME, twin)


def test_two_writers_at_once_leave_one_whole_file(twin, document, tmp_path):
    snapshots = []
    for n in (100, 200, 300):
        with twin.context(512) as ctx:
            ctx.decode(document[:n])
            snapshots.append(lab.KVSnapshot.capture(ctx, document[:n]))
    failures = []

    def write(snapshot):
        try:
            for _ in range(15):
                snapshot.save(tmp_path / NAME)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(snapshot,)) for snapshot in snapshots for _ in range(2)]
    for thread in threads:
        thread.start()
    sizes = set()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / NAME).exists():
            sizes.add(len(lab.KVSnapshot.load(tmp_path / NAME, twin).tokens))
    assert failures == []
    assert sizes
    assert sizes <= {100, 200, 300}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: os.truncate(path, 0), lambda path: path.write_bytes(b"x")]
)
def test_what_was_loaded_stays_whatever_becomes_of_the_file(saved, snapshot, twin, question, change):
    loaded = lab.KVSnapshot.load(saved, twin)
    change(saved)
    np.testing.assert_array_equal(answer(twin, loaded, question), answer(twin, snapshot, question))


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 5000, -1])
def test_a_file_that_is_cut_while_it_is_read(saved, twin, monkeypatch, n_bytes):
    """Its size was that of the whole file; then it ends early."""
    size = saved.stat().st_size
    os.truncate(saved, n_bytes if n_bytes >= 0 else size - 1)
    monkeypatch.setattr(snapshot_file.os, "fstat", lambda _: os.stat_result((stat.S_IFREG, *[0] * 5, size, 0, 0, 0)))
    with pytest.raises(lab.SnapshotCorruptError):
        lab.KVSnapshot.load(saved, twin)


@pytest.mark.soak
def test_truncations_at_any_moment_of_a_restore_never_end_the_process(saved, twin, all_cores):
    """Another process truncates and rewrites the file as fast as it can, while this one loads and restores it."""
    whole = saved.read_bytes()
    code = (
        "import os, sys\n"
        "whole = open(sys.argv[1], 'rb').read()\n"
        "while True:\n"
        "    os.truncate(sys.argv[1], len(whole) // 3)\n"
        "    with open(sys.argv[1], 'r+b') as file:\n        file.write(whole)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, saved])
    counts = {"restored": 0, "refused": 0}
    try:
        until = time.monotonic() + often(10)
        with twin.context(512) as ctx:
            while time.monotonic() < until:
                try:
                    loaded = lab.KVSnapshot.load(saved, twin)
                    for _ in range(3):
                        loaded.restore(ctx)
                    counts["restored"] += 1
                except lab.SnapshotCorruptError:
                    counts["refused"] += 1
                except lab.SwarmKVError:  # it was opened while it was empty
                    counts["refused"] += 1
    finally:
        process.kill()
        process.wait()
    assert counts["refused"] > 0
    saved.write_bytes(whole)
    lab.KVSnapshot.load(saved, twin)


@needs(os, "fork")
@pytest.mark.soak
def test_a_kill_at_any_moment_leaves_a_whole_file(twin, document, tmp_path):
    """200 kills, a tenth in make test: always the old or the new file, whole, and no rubbish a day later."""
    snapshots, found, chosen = [], [], random.Random(7)
    for n in (250, 300):
        with twin.context(512) as ctx:
            ctx.decode(document[:n])
            snapshots.append(lab.KVSnapshot.capture(ctx, document[:n]))
    snapshots[0].save(tmp_path / NAME)
    for _ in range(often(200)):
        if not (writer := os.fork()):
            try:  # the child only writes, again and again, until it is killed
                while True:
                    for snapshot in snapshots:
                        snapshot.save(tmp_path / NAME)
            finally:
                os._exit(1)
        time.sleep(chosen.random() * 0.03)
        os.kill(writer, signal.SIGKILL)
        _, status = os.waitpid(writer, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        found.append(len(lab.KVSnapshot.load(tmp_path / NAME, twin).tokens))
    assert set(found) == {250, 300}
    for name in leftovers(tmp_path):
        os.utime(tmp_path / name, (1, 1))
    snapshots[0].save(tmp_path / NAME)
    assert leftovers(tmp_path) == []


def test_a_temporary_file_in_use_is_left_alone(saved, snapshot):
    with atomic.replacing(saved.with_name("other")) as file:
        file.write(b"half")
        snapshot.save(saved)
        assert len(leftovers(saved.parent)) == 1
    assert leftovers(saved.parent) == ["other"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")
def test_nothing_stays_open(saved, twin):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    lab.KVSnapshot.load(saved, twin)
    before = open_files()
    for _ in range(50):
        loaded = lab.KVSnapshot.load(saved, twin)
        with twin.context(512) as ctx:
            loaded.restore(ctx)
        del loaded
    assert open_files() == before
