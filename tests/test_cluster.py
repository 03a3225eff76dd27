"""The same answers on many processes, and what dies on the way: real workers, real signals, on a twin."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import SHAPES

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cluster import tasks
from swarmkv_lab.errors import ContextBudgetError, SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_studies.common.twins import write_twin

distributed = pytest.importorskip("distributed")
from distributed import Client, LocalCluster, Nanny, SpecCluster, WorkerPlugin  # noqa: E402

from swarmkv_lab.cluster.dask import DaskEngine, serve  # noqa: E402

LONG = 600  # tokens of an answer that somebody can be killed in


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Workers inherit it, and captures of other tests are not found."""
    before = os.environ.get("SWARMKV_CACHE")
    os.environ["SWARMKV_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SWARMKV_CACHE") if before is None else os.environ.update(SWARMKV_CACHE=before)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return str(write_twin(tmp_path_factory.mktemp("model") / "twin.gguf", SHAPES["two layers"]))


@pytest.fixture(scope="module")
def client():
    with quiet(LocalCluster, n_workers=2) as cluster, Client(cluster) as client:
        yield client


@contextmanager
def quiet(kind, **how):
    """A cluster on loopback without a dashboard."""
    alike = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50} if kind is LocalCluster else {}
    with kind(**how, **alike) as cluster:
        yield cluster


@contextmanager
def hosts(folder, n=2, **environments):
    """n workers with a cache folder each, as if on n machines. environments: more variables by worker, w0=..."""
    spec = {}
    for i in range(n):
        env = {"SWARMKV_CACHE": str(folder / f"host{i}")} | environments.get(f"w{i}", {})
        spec[i] = {"cls": Nanny, "options": {"nthreads": 1, "env": env, "dashboard": False, "silence_logs": 50}}
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0", "port": 0, "host": "127.0.0.1"}}
    with quiet(SpecCluster, workers=spec, scheduler=scheduler, silence_logs=50) as cluster, Client(cluster) as client:
        client.wait_for_workers(n)
        yield client


@pytest.fixture
def fresh(rng):
    """A document that nobody has captured."""
    return np.random.default_rng().integers(0, 256, 300, dtype=np.int32)


@pytest.fixture
def prompts(rng):
    return {f"agent {i}": rng.integers(0, 256, 5 + i, dtype=np.int32) for i in range(5)}


def here(gguf, document, prompts, strategy="shared", **how):
    with lab.load_model(gguf) as model:
        return lab.fan_out(model, document, prompts, strategy, **how)


def there(client, gguf, document, prompts, *args, **how):
    return lab.cluster.fan_out(client, gguf, document, prompts, *args, progress=False, **how)


def assert_same(run, reference):
    exact = run.compare(reference)
    assert exact.max_abs_logit_diff.max() == 0
    assert exact.same_tokens.all()
    assert run.answers == reference.answers
    assert not run.errors


def pid_of(run, worker):
    return int(run.workers.set_index("worker").process[worker].rpartition(":")[2])


# -- the same answers


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_dask_answers_as_one_process_does(client, gguf, fresh, prompts, strategy):
    run = there(client, gguf, fresh, prompts, strategy, max_tokens=12, together=2)
    if strategy != "batched":  # which depends on who is packed with whom, but not on the workers
        assert_same(run, here(gguf, fresh, prompts, strategy, max_tokens=12))
    assert run.metrics["prefills"] == (0 if strategy == "naive" else 1)
    assert run.metrics["model_loads"] == 1
    assert set(run.timeline.worker) <= set(run.workers.worker)
    assert run.agents.ttft_ms.gt(0).all()
    assert run.workers.agents.sum() == len(prompts)
    assert (run.timeline.start_ms >= 0).all()
    assert (run.timeline.end_ms >= run.timeline.start_ms).all()


def test_batched_depends_on_its_groups_and_not_on_the_workers(client, gguf, fresh, prompts):
    two = there(client, gguf, fresh, prompts, "batched", max_tokens=12, together=2)
    with quiet(LocalCluster, n_workers=1) as cluster, Client(cluster) as alone:
        one = there(alone, gguf, fresh, prompts, "batched", max_tokens=12, together=2)
    assert_same(one, two)
    names = list(prompts)
    for group in (names[:2], names[2:4], names[4:]):
        alike = here(gguf, fresh, {name: prompts[name] for name in group}, "batched", max_tokens=12)
        for branch in alike.branches:
            assert np.array_equal(branch.logits, one.schedule.branches[branch.name].logits)


@pytest.mark.parametrize("threads", [1, 2])
def test_four_workers_and_any_threads(gguf, fresh, prompts, threads):
    with quiet(LocalCluster, n_workers=4) as cluster, Client(cluster) as four:
        run = there(four, gguf, fresh, prompts, max_tokens=12, n_threads=threads)
    assert_same(run, here(gguf, fresh, prompts, max_tokens=12))
    assert run.metrics["n_workers"] == 4


def test_a_pool_of_processes_runs_the_same(gguf, fresh, prompts):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        told = []
        run = there(pool, gguf, fresh, prompts, max_tokens=12, on_token=lambda *token: told.append(token))
        assert_same(run, here(gguf, fresh, prompts, max_tokens=12))
        assert len(told) == sum(len(branch.tokens) for branch in run.branches)
        assert run.workers.model_loads.max() == 1
        again = there(pool, gguf, fresh, prompts, "pooled", max_tokens=12)
        assert again.metrics["prefills"] == 0
        with pytest.raises(ZeroDivisionError):
            there(pool, gguf, fresh, prompts, max_tokens=LONG, callback=lambda run: 1 / 0)
        assert_same(there(pool, gguf, fresh, prompts, max_tokens=12), again)
        os.kill(int(run.workers.process[0].rpartition(":")[2]), signal.SIGKILL)
        with pytest.raises(SwarmKVError, match=r"on a Dask cluster the others go on|takes no tasks"):
            there(pool, gguf, fresh, prompts, max_tokens=12)


def test_tokens_come_once_and_in_order_while_it_goes_on(client, gguf, fresh, prompts):
    told, seen = {name: [] for name in prompts}, []
    run = there(
        client, gguf, fresh, prompts, max_tokens=200, on_token=lambda name, token: told[name].append(token),
        callback=lambda run: seen.append(sum(len(branch.tokens) for branch in run.branches)),
    )  # fmt: skip
    assert told == {branch.name: branch.tokens for branch in run.branches}
    assert seen == sorted(seen)
    assert len(set(seen)) > len(prompts)


def test_words_and_an_open_model(client, real, dossier):
    prompts = ["Which key is hard-coded in the source?", "Which licence is a risk?"]
    run = lab.cluster.fan_out(client, real, dossier[:128], prompts, max_tokens=4, progress=False)
    assert_same(run, lab.fan_out(real, dossier[:128], prompts, max_tokens=4))


# -- snapshots between workers


def test_a_worker_without_the_file_fetches_it_from_one_that_has_it(tmp_path, gguf, fresh, prompts):
    with hosts(tmp_path) as client:
        run = there(client, gguf, fresh, prompts, max_tokens=300)
        assert_same(run, here(gguf, fresh, prompts, max_tokens=300))
        assert run.metrics["prefills"] == 1
        fetched = run.timeline[run.timeline.phase == "fetch"]
        captured = run.timeline[run.timeline.phase == "capture"]
        assert list(fetched.bytes) == list(captured.bytes)
        assert set(fetched.worker) | set(captured.worker) == set(run.workers.worker)
    files = [sorted(path.name for path in (tmp_path / f"host{i}" / "prefixes").iterdir()) for i in range(2)]
    assert files[0] == files[1] != []


def test_a_shared_store_is_read_by_all_and_prefilled_once(tmp_path, gguf, fresh, prompts):
    store = tmp_path / "store"
    with hosts(tmp_path) as client:
        first = there(client, gguf, fresh, prompts, max_tokens=300, store=str(store))
        second = there(client, gguf, fresh, prompts, max_tokens=300, store=str(store))
    assert_same(first, here(gguf, fresh, prompts, max_tokens=300))
    assert first.metrics["prefills"] == 1
    assert second.metrics["prefills"] == 0
    assert len(list(store.iterdir())) == 1


def test_a_damaged_file_in_the_store_is_said_and_prefilled_again(tmp_path, gguf, fresh, prompts):
    with hosts(tmp_path, 1) as client:
        first = there(client, gguf, fresh, prompts, max_tokens=12, store=str(tmp_path / "store"))
        client.run(_forget)
        (path,) = (tmp_path / "store").iterdir()
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        with pytest.warns(UserWarning, match="not used from the store: the snapshot's state has the checksum"):
            second = there(client, gguf, fresh, prompts, max_tokens=12, store=str(tmp_path / "store"))
    assert_same(second, first)
    assert second.metrics["prefills"] == 1
    assert lab.KVSnapshot.describe(path)["tokens"] == len(fresh)


def _forget():
    from swarmkv_lab.cluster.resident import release

    release()


def test_a_store_without_room_is_said_and_the_run_goes_on(tmp_path, gguf, fresh, prompts):
    with hosts(tmp_path) as client:
        client.run(_small_files)
        with pytest.warns(UserWarning, match="the store could not keep the snapshot: .*too large"):
            run = there(client, gguf, fresh, prompts, max_tokens=300, store=str(tmp_path))
    assert_same(run, here(gguf, fresh, prompts, max_tokens=300))
    assert run.metrics["prefills"] == 1  # the other one has fetched it
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def _small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def test_a_pickled_snapshot_is_checked_again(twin, document):
    snapshot = lab.prefill(twin, document)
    buffers = []
    data = pickle.dumps(snapshot, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 20_000  # the state is beside it
    same = pickle.loads(data, buffers=buffers)
    assert np.array_equal(same.data, snapshot.data)
    assert same.identity == snapshot.identity
    damaged = bytearray(buffers[0].raw())
    damaged[1000] ^= 1
    with pytest.raises(SnapshotCorruptError, match="checksum"):
        pickle.loads(data, buffers=[damaged])
    with pytest.raises(SnapshotCorruptError):
        pickle.loads(data, buffers=[damaged[:-1]])


# -- who dies


@pytest.mark.parametrize("strategy", ["shared", pytest.param("naive", marks=pytest.mark.thorough)])
def test_a_worker_killed_while_it_answers(client, gguf, fresh, prompts, strategy):
    killed = []

    def kill(run):
        if not killed and any(branch.tokens for branch in run.branches):
            worker = next(iter(run.coordinator.at_work))
            killed.append(worker)
            os.kill(pid_of(run, worker), signal.SIGKILL)

    run = there(client, gguf, fresh, prompts, strategy, max_tokens=LONG, callback=kill)
    assert_same(run, here(gguf, fresh, prompts, strategy, max_tokens=LONG))
    lost = run.timeline[run.timeline.phase == "lost"]
    assert list(lost.worker) == killed
    assert run.workers.set_index("worker").gone_ms[killed[0]] > 0


def test_the_holder_dies_before_anybody_has_read(tmp_path, gguf, fresh, prompts):
    killed = []

    def kill(run):
        captured = run.timeline[run.timeline.phase == "capture"]
        if not killed and len(captured):
            killed.append(captured.worker.iloc[0])
            os.kill(pid_of(run, killed[0]), signal.SIGKILL)

    with hosts(tmp_path) as client:
        run = there(client, gguf, fresh, prompts, max_tokens=300, callback=kill)
    assert_same(run, here(gguf, fresh, prompts, max_tokens=300))


def test_the_holder_dies_while_its_word_of_it_is_on_the_way(tmp_path, gguf, fresh, prompts, monkeypatch):
    result, killed = DaskEngine.result, []

    def late(engine, future):
        if "capture" in future.key and not killed:
            killed.extend(pid for pid in engine._client.run(_holding, future.key).values() if pid)
            os.kill(killed[0], signal.SIGKILL)
        return result(engine, future)

    monkeypatch.setattr(DaskEngine, "result", late)
    with hosts(tmp_path) as client:
        run = there(client, gguf, fresh, prompts, max_tokens=12)
    assert_same(run, here(gguf, fresh, prompts, max_tokens=12))
    assert len(killed) == 1


def _holding(key, dask_worker):
    return os.getpid() if key in dask_worker.data else 0


def test_a_worker_killed_while_it_captures_and_one_while_it_sends(tmp_path, gguf, prompts):
    long = np.random.default_rng().integers(0, 256, 3000, dtype=np.int32)
    with hosts(tmp_path) as client:
        killer = threading.Thread(target=_kill_who_captures, args=(client,))
        killer.start()
        run = there(client, gguf, long, prompts, max_tokens=12)
        killer.join()
        reference = here(gguf, long, prompts, max_tokens=12)
        assert_same(run, reference)

        again = np.concatenate([long[:-1], [7]]).astype(np.int32)
        serve(client, uplink=1e5)  # so slowly that it does not end

        def kill(run):
            begun = set(run.coordinator.at_work)
            captured = run.timeline[run.timeline.phase == "capture"]
            if len(captured) and begun - set(captured.worker):  # the other one waits for it
                with suppressed():
                    os.kill(pid_of(run, captured.worker.iloc[0]), signal.SIGKILL)

        run = there(client, gguf, again, prompts, max_tokens=300, callback=kill)
        assert_same(run, here(gguf, again, prompts, max_tokens=300))


def suppressed():
    from contextlib import suppress

    return suppress(ProcessLookupError)


def _kill_who_captures(client):
    """Within a prefill."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for worker, pid in client.run(_capturing).items():
            if pid:
                os.kill(pid, signal.SIGKILL)
                return worker
    raise AssertionError("nobody captured")


def _capturing(dask_worker):
    keys = [key for key, task in dask_worker.state.tasks.items() if "capture" in key and task.state == "executing"]
    return os.getpid() if keys else 0


class Poison(WorkerPlugin):
    """Who takes this agent dies."""

    def setup(self, worker):
        answer = tasks.answer

        def poisoned(link, job, held, branches):
            if any(branch.name == "poison" for branch in branches):
                os.kill(os.getpid(), signal.SIGKILL)
            return answer(link, job, held, branches)

        tasks.answer = poisoned


def test_a_task_that_ends_each_worker_is_one_agents_failure(tmp_path, gguf, fresh, prompts, monkeypatch):
    monkeypatch.setattr("swarmkv_lab.cluster.coordinator.DEATHS", 2)
    with hosts(tmp_path) as client:
        client.register_plugin(Poison(), name="poison")
        run = there(client, gguf, fresh, {"poison": prompts["agent 0"]} | prompts, max_tokens=12)
    assert set(run.errors) == {"poison"}
    assert "it ended each of the 2 workers" in str(run.errors["poison"])
    reference = here(gguf, fresh, {"poison": prompts["agent 0"]} | prompts, max_tokens=12)
    assert {name: run.answers[name] for name in prompts} == {name: reference.answers[name] for name in prompts}
    with pytest.raises(SwarmKVError, match="poison failed"):
        run.whole()


def test_the_scheduler_dies(tmp_path, gguf, fresh, prompts, monkeypatch):
    monkeypatch.setattr("swarmkv_lab.cluster.dask._PATIENCE_S", 0.5)
    children = _start_scheduler_and_worker(tmp_path)
    try:
        with Client(scheduler_file=str(tmp_path / "scheduler.json")) as c:
            c.wait_for_workers(1)
            runs = []

            def kill(run):
                if not runs and any(branch.tokens for branch in run.branches):
                    runs.append(run)
                    children[0].kill()

            with pytest.raises(SwarmKVError, match="the scheduler is gone"):
                there(c, gguf, fresh, prompts, max_tokens=LONG, callback=kill)
            assert any(branch.tokens for branch in runs[0].branches)  # nothing is lost
    finally:
        for child in children:
            child.kill()
            child.wait()


def _start_scheduler_and_worker(folder):
    import subprocess
    import sys

    file = str(folder / "scheduler.json")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [
        subprocess.Popen(
            [*dask, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file], **how
        ),
        subprocess.Popen([*worker, "--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard"], **how),
    ]


# -- who takes part


def test_a_worker_with_another_model_is_refused_and_the_others_go_on(tmp_path, gguf, fresh, prompts, monkeypatch):
    other = write_twin(tmp_path / "other.gguf", SHAPES["one layer"])
    with hosts(tmp_path, w0={"SWARMKV_MODEL": str(gguf)}, w1={"SWARMKV_MODEL": str(other)}) as client:
        monkeypatch.setenv("SWARMKV_MODEL", gguf)
        with pytest.warns(UserWarning, match="takes no part: it has model"):
            run = there(client, None, fresh, prompts, max_tokens=12)
        assert_same(run, here(gguf, fresh, prompts, max_tokens=12))
        assert (run.workers.refused != "").sum() == 1
        assert run.workers.agents.max() == len(prompts)


def test_a_worker_with_another_build_is_refused_unless_bits_do_not_matter(tmp_path, gguf, fresh, prompts):
    with hosts(tmp_path) as client:
        first = next(iter(client.nthreads()))
        client.run(_another_build, workers=[first])
        with pytest.warns(UserWarning, match="instructions"):
            run = there(client, gguf, fresh, prompts, max_tokens=12)
        assert run.metrics["n_workers"] == 1
        run = there(client, gguf, fresh, prompts, max_tokens=300, exact=False)
        assert run.metrics["n_workers"] == 2
        assert not run.errors


def _another_build():
    tasks.build = lambda: "another build"


def test_a_late_worker_joins(tmp_path, gguf, fresh, prompts):
    """Who was there first stands still until the late one works: else it may have done everything before."""
    with quiet(LocalCluster, n_workers=1) as cluster, Client(cluster) as client:
        ((address, first),) = client.run(os.getpid).items()
        grown = []

        def grow(run):
            if not grown and any(branch.tokens for branch in run.branches):
                os.kill(first, signal.SIGSTOP)
                grown.append(cluster.scale(2))
            if set(run.coordinator.at_work) - {address}:
                os.kill(first, signal.SIGCONT)

        try:
            run = there(client, gguf, fresh, prompts | {f"more {i}": p for i, p in enumerate(prompts.values())},
                        max_tokens=LONG, callback=grow)  # fmt: skip
        finally:
            os.kill(first, signal.SIGCONT)
        assert run.workers.agents.gt(0).sum() == 2


def test_an_interrupt_ends_what_runs(client, gguf, fresh, prompts):
    def interrupt(run):
        if any(branch.tokens for branch in run.branches):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        there(client, gguf, fresh, prompts, max_tokens=3000, callback=interrupt)
    until = time.monotonic() + 20
    while time.monotonic() < until and any(client.processing().values()):
        time.sleep(0.05)
    assert not any(client.processing().values())
    assert not any(client.run(_working).values())
    assert_same(there(client, gguf, fresh, prompts, max_tokens=12), here(gguf, fresh, prompts, max_tokens=12))


def _working():
    from swarmkv_lab.cluster.resident import RESIDENT

    free = RESIDENT.lock.acquire(timeout=5)
    if free:
        RESIDENT.lock.release()
    return not free


# -- what else runs there


def test_a_pipelines_stages_run_on_different_workers(client, gguf, fresh, rng):
    with lab.load_model(gguf) as model:
        ask = {name: rng.integers(0, 256, 6, dtype=np.int32) for name in "abcd"}
        pipeline = lab.Pipeline(
            model,
            fresh,
            [
                lab.Agent("early", ask["a"], prefix_tokens=100, max_tokens=300),
                lab.Agent("one", ask["b"], max_tokens=300),
                lab.Agent("two", ask["c"], max_tokens=300),
                lab.Agent("reader", ask["d"], after=["early", "one", "two"], max_tokens=20),
            ],
        )
        run = pipeline.run("shared", client=client)
        reference = pipeline.run("shared")
        assert_same(run, reference)
        work = run.timeline[run.timeline.phase == "generate"].set_index("agent")
        assert work.worker.nunique() == 2
        assert work.start_ms["reader"] >= work.end_ms[["early", "one", "two"]].max()
        with pytest.raises(SwarmKVError, match="threads=2"):
            pipeline.run("naive", client=client, threads=2)


def test_a_sweep_over_a_cluster_and_its_resumption(client, gguf, fresh, prompts, tmp_path):
    with lab.load_model(gguf) as model:
        how = {"depths": [64, 128], "n_agents": [1, 2], "strategies": ["naive", "shared"], "repeats": 2,
               "agents": prompts, "max_tokens": 4, "path": tmp_path / "grid.csv", "progress": False}  # fmt: skip
        frame = studies.sweep(model, fresh, client=client, **how)
        assert len(frame) == 16
        assert frame.max_abs_logit_diff.max() == 0
        lines = (tmp_path / "grid.csv").read_text().splitlines(keepends=True)
        (tmp_path / "grid.csv").write_text("".join(lines[:8]))
        again = studies.sweep(model, fresh, client=client, **how)
        assert len(again) == 16
        assert (tmp_path / "grid.csv").read_text().splitlines(keepends=True)[:8] == lines[:8]
        with pytest.raises(SwarmKVError, match="cannot be sent to other processes"):
            studies.sweep(model, fresh, client=client, callback=print, **how)


def test_a_model_that_was_replaced_is_loaded_again(tmp_path, fresh, prompts):
    path = write_twin(tmp_path / "twin.gguf", SHAPES["two layers"])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        first = there(pool, str(path), fresh, prompts, max_tokens=8)
        write_twin(tmp_path / "other.gguf", SHAPES["one layer"]).replace(path)
        second = there(pool, str(path), fresh, prompts, max_tokens=8)
        assert first.answers != second.answers
        assert_same(second, here(path, fresh, prompts, max_tokens=8))
        assert second.metrics["model_loads"] == 2


# -- what a caller does wrong


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"max_tokens": 10_000}, ContextBudgetError, "positions"),
        ({"strategy": "fast"}, SwarmKVError, "is not one of"),
        ({"together": 0}, SwarmKVError, "together=0"),
        ({"kv_typ": "f16"}, SwarmKVError, "kv_typ"),
        ({"tokens": []}, SwarmKVError, "one row of token ids"),
        ({"tokens": [1.5, 2.5]}, SwarmKVError, "one row of token ids"),
        ({"tokens": [[1, 2]]}, SwarmKVError, "one row of token ids"),
        ({"tokens": [2**40]}, SwarmKVError, "one row of token ids"),
        ({"tokens": [1, 99_999]}, SwarmKVError, "token"),
        ({"agents": []}, SwarmKVError, "agents is a list"),
        ({"model_source": "/nowhere/model.gguf"}, SwarmKVError, "nowhere"),
        ({"client": "tcp://here"}, SwarmKVError, "give a Dask Client"),
    ],
)
def test_bad_input_is_refused_before_anything_is_decoded(client, gguf, fresh, prompts, how, error, message):
    asked = {"client": client, "model_source": gguf, "tokens": fresh, "agents": prompts, "progress": False} | how
    with pytest.raises(error, match=message):
        lab.cluster.fan_out(**asked)


def test_the_clients_file_decides_which_model(client, gguf, fresh, prompts, tmp_path):
    other = write_twin(tmp_path / "twin.gguf", SHAPES["one layer"])
    with lab.load_model(other) as model:
        moved = Path(gguf)
        model.path = moved  # the workers find another file there
        with pytest.raises(SnapshotMismatchError, match="the model here is"):
            there(client, model, fresh, prompts)
        model.path = other


# -- in private, and gone without a trace


def test_tls_on_loopback(gguf, fresh, prompts):
    pytest.importorskip("cryptography")
    security = distributed.Security.temporary()
    with quiet(LocalCluster, n_workers=2, security=security) as cluster, Client(cluster, security=security) as client:
        run = there(client, gguf, fresh, prompts, max_tokens=12)
        assert all(worker.startswith("tls://") for worker in run.workers.worker)
        assert_same(run, here(gguf, fresh, prompts, max_tokens=12))
        with pytest.raises((OSError, TypeError)), Client(cluster.scheduler_address, timeout=2):
            pass


def test_nothing_is_left_behind(tmp_path, gguf, fresh, prompts):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with hosts(tmp_path) as client:
        there(client, gguf, fresh, prompts, max_tokens=12)
        client.run(lambda: os.getpid())
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    psutil.wait_procs(left, timeout=10)
    assert not [child for child in left if child.is_running() and "resource_tracker" not in " ".join(child.cmdline())]
    assert not list(tmp_path.rglob("*swarmkv-tmp*"))
