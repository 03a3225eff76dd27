"""The same answers on many processes, and what dies on the way: real Dask workers, real signals, on a twin."""

import dataclasses
import os
import pickle
import shutil
import signal
import time
from contextlib import nullcontext

import dask
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import SHAPES

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.errors import ContextBudgetError, SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.common.twins import write_twin
from swarmkv_studies.many_machines.bench import against_one_process, cluster_table, local_cluster, run_with_a_death

distributed = pytest.importorskip("distributed")
from distributed import Client, LocalCluster  # noqa: E402

from swarmkv_lab.cluster import tasks  # noqa: E402


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return str(write_twin(tmp_path_factory.mktemp("model") / "twin.gguf", SHAPES["two layers"]))


@pytest.fixture(scope="module")
def client():
    with local_cluster(2) as client:
        yield client


@pytest.fixture
def prompts(rng):
    return {f"agent {i}": rng.integers(0, 256, 5 + i, dtype=np.int32) for i in range(5)}


def here(gguf, document, prompts, strategy="shared", **how):
    with lab.load_model(gguf) as model:
        return lab.fan_out(model, document, prompts, strategy, **how)


def there(client, gguf, document, prompts, *args, **how):
    return lab.cluster.fan_out(client, gguf, document, prompts, *args, progress=False, **how)


def hooked(client, before):
    """Have all workers, also those that are started again, call before(names of agents) before they answer them."""

    class Hook(distributed.WorkerPlugin):
        def setup(self, worker):
            named = tasks.strategy_named

            def hook(name):
                def answer(run):
                    before(list(run.schedule.branches))
                    named(name).answer(run)

                return dataclasses.replace(named(name), answer=answer)

            tasks.strategy_named = hook

    client.register_plugin(Hook())


def job_of(run, gguf, document):
    info, *_ = run.infos.values()
    return tasks.Job(gguf, -1, True, "shared", ContextSettings(n_ctx=512), info.identity, document)


def assert_same(run, reference):
    exact = run.compare(reference)
    assert exact.max_abs_logit_diff.max() == 0
    assert exact.same_tokens.all()
    assert run.answers == reference.answers
    assert not run.errors


# -- the same answers


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_it_answers_as_one_process_does(client, gguf, document, prompts, strategy):
    run = there(client, gguf, document, prompts, strategy, max_tokens=12, together=2)
    if strategy != "batched":  # which depends on who is packed with whom, but not on the workers
        assert_same(run, here(gguf, document, prompts, strategy, max_tokens=12))
    assert run.metrics["prefills"] == (0 if strategy == "naive" else 1)
    assert set(run.timeline.worker) <= set(run.workers.worker)
    assert (run.timeline.start_ms >= 0).all()
    assert (run.timeline.end_ms >= run.timeline.start_ms).all()
    assert run.workers.agents.sum() == len(prompts)
    assert run.agents.ttft_ms.gt(0).all()


def test_batched_depends_on_its_groups_and_not_on_the_workers(client, gguf, document, prompts):
    run = there(client, gguf, document, prompts, "batched", max_tokens=12, together=2)
    names = list(prompts)
    for group in (names[:2], names[2:4], names[4:]):
        alike = here(gguf, document, {name: prompts[name] for name in group}, "batched", max_tokens=12)
        for branch in alike.branches:
            assert np.array_equal(branch.logits, run.schedule.branches[branch.name].logits)


def test_a_model_is_loaded_once_in_a_process_and_again_when_its_file_is_another(client, tmp_path, document, prompts):
    path = write_twin(tmp_path / "twin.gguf", SHAPES["two layers"])
    there(client, str(path), document, prompts, max_tokens=2)
    with pytest.raises(SwarmKVError, match="nowhere"):  # and the next run finds its model again
        there(client, "nowhere.gguf", document, prompts)
    run = there(client, str(path), document, prompts, max_tokens=2)
    loads = run.workers.model_loads.max()
    assert there(client, str(path), document, prompts, max_tokens=2).workers.model_loads.max() == loads
    os.replace(write_twin(tmp_path / "other.gguf", SHAPES["one layer"]), path)
    assert_same(there(client, str(path), document, prompts, max_tokens=2), here(path, document, prompts, max_tokens=2))


@pytest.mark.real
def test_words_and_an_open_model(client, real, dossier):
    run = lab.cluster.fan_out(client, real, dossier[:64], {"one": "Who sells?"}, max_tokens=2, progress=False)
    assert run.answers == lab.fan_out(real, dossier[:64], {"one": "Who sells?"}, max_tokens=2, n_threads=1).answers


def test_the_callback_sees_answers_come_and_ends_the_run(client, gguf, document, prompts):
    seen = []

    def see(run):
        seen.append(sum(map(bool, run.answers.values())))

    there(client, gguf, document, prompts, max_tokens=4, together=1, callback=see)
    assert seen == [1, 2, 3, 4, 5]

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        there(client, gguf, document, prompts, max_tokens=3000, together=1, callback=stop)
    assert_same(there(client, gguf, document, prompts, max_tokens=4), here(gguf, document, prompts, max_tokens=4))


def test_tls_on_loopback(gguf, document, prompts):
    pytest.importorskip("cryptography")
    security, quiet = distributed.Security.temporary(), {"dashboard_address": None, "silence_logs": 50}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, security=security, **quiet) as cluster,
        Client(cluster, security=security) as client,
    ):
        run = there(client, gguf, document, prompts, max_tokens=4)
        assert all(worker.startswith("tls://") for worker in run.workers.worker)
        assert_same(run, here(gguf, document, prompts, max_tokens=4))


# -- what is not as it should be


def test_a_worker_refuses_another_model_and_another_documents_snapshot(client, gguf, document, prompts, monkeypatch):
    run = there(client, gguf, document, prompts, max_tokens=2)
    job = job_of(run, gguf, document)
    foreign = dataclasses.replace(job, identity=job.identity._replace(model="another"))
    with pytest.raises(SnapshotMismatchError):
        client.submit(tasks.capture, foreign, pure=False).result()
    captured = client.submit(tasks.capture, job, pure=False)
    other = dataclasses.replace(job, tokens=document[::-1].copy())
    with pytest.raises(SnapshotMismatchError):
        client.submit(tasks.answer, other, captured, run.branches[:1], pure=False).result()


def test_bytes_that_change_on_their_way_to_a_worker_are_refused_there(gguf, document, prompts):
    def spoil():
        tasks.Captured.__reduce__ = lambda self: (tasks.Captured, (self.record, self.pickled, self.state[::-1].copy()))

    with local_cluster(2) as client:
        first, second = client.nthreads()
        run = there(client, gguf, document, prompts, max_tokens=2)
        client.run(spoil, workers=[first])
        job = job_of(run, gguf, document)
        captured = client.submit(tasks.capture, job, workers=[first], pure=False)
        for worker, refused in ((first, nullcontext()), (second, pytest.raises(SnapshotCorruptError))):
            with refused:
                client.submit(tasks.answer, job, captured, run.branches[:1], workers=[worker], pure=False).result()


def test_a_worker_with_another_file_takes_no_part(client, gguf, document, prompts, tmp_path):
    mine = write_twin(tmp_path / "twin.gguf", SHAPES["two layers"])
    theirs = write_twin(tmp_path / "theirs.gguf", SHAPES["one layer"])
    first, second = client.nthreads()

    def relative(folder):  # each worker has a file of this name in a folder of its own
        os.chdir(folder)

    for worker, path in ((first, mine), (second, theirs)):
        folder = tmp_path / f"at {worker.rpartition(':')[2]}"
        folder.mkdir()
        shutil.copy(path, folder / "same name.gguf")
        client.run(relative, str(folder), workers=[worker])
    run = there(client, "same name.gguf", document, prompts, max_tokens=4)
    refused = run.workers.set_index("worker").refused
    assert sum(map(bool, refused)) == 1
    assert set(run.timeline.worker) == {worker for worker in (first, second) if not refused[worker]}
    with lab.load_model(mine if refused[second] else theirs) as model:
        assert_same(run, lab.fan_out(model, document, prompts, max_tokens=4))
    nobody = write_twin(tmp_path / "nobody.gguf", SHAPES["80 layers"])
    with lab.load_model(nobody) as model:
        os.remove(nobody)
        with pytest.raises(SnapshotMismatchError):
            there(client, model, document, prompts)


@pytest.mark.parametrize(("how", "error", "message"), [
    ({"max_tokens": 5000}, ContextBudgetError, "5,"), ({"n_ctx": 100}, ContextBudgetError, "n_ctx=100"),
    *((how, SwarmKVError, message) for how, message in (
        ({"strategy": "magic"}, "magic"), ({"together": 0}, "together=0"), ({"max_tokens": -1}, "max_tokens=-1"),
        ({"tokens": [1.5]}, "float64"), ({"tokens": [300]}, "300"), ({"agents": {}}, "agents"),
        ({"agents": {"one": [999]}}, "999"),
    )),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_decoded(client, gguf, document, prompts, how, error, message):
    asked = {"tokens": document, "agents": prompts} | how
    with pytest.raises(error, match=message):
        lab.cluster.fan_out(client, gguf, progress=False, **asked)


# -- who dies


def test_a_worker_killed_while_it_works(gguf, document, prompts):
    with lab.load_model(gguf) as model, local_cluster(2) as client:
        pids = list(client.run(os.getpid).values())

        def wait_for_a_death(names):
            while names == ["agent 4"] and all(map(psutil.pid_exists, pids)):
                time.sleep(0.01)

        hooked(client, wait_for_a_death)  # so that somebody is at work when two answers are there
        run, dead = run_with_a_death(client, model, document, prompts, max_tokens=300, together=1)
        assert dead in run.infos
    assert_same(run, here(gguf, document, prompts, max_tokens=300))


def test_the_snapshot_is_made_again_when_its_only_holder_dies(gguf, document, prompts):
    with local_cluster(2) as client:
        job = job_of(there(client, gguf, document, {"one": [1]}, max_tokens=1), gguf, document)
        captured = client.submit(tasks.capture, job, pure=False)
        distributed.wait(captured)
        (holders,) = client.who_has(captured).values()
        for worker, process in client.run(os.getpid).items():
            if worker in holders:
                os.kill(process, signal.SIGKILL)
        held = captured.result(timeout=60)
    with lab.load_model(gguf) as model:
        assert np.array_equal(pickle.loads(held.pickled, buffers=[held.state]).data, lab.prefill(model, document).data)


def test_a_worker_that_is_started_again_goes_on_for_the_only_one_that_was_able(gguf, document, prompts, tmp_path):
    shutil.copy(gguf, tmp_path / "mine.gguf")
    killed = []

    class Home(distributed.WorkerPlugin):
        def setup(self, worker):
            os.chdir(tmp_path)

    def kill(run):
        killed.append(run.infos[first].process)
        if len(killed) == 1:
            os.kill(int(killed[0].rpartition(":")[2]), signal.SIGKILL)

    with local_cluster(2) as client:
        client.register_plugin(Home())
        first, second = client.nthreads()
        client.run(os.chdir, "/", workers=[second])  # where there is no model
        run = there(client, "mine.gguf", document, prompts, max_tokens=4, together=1, callback=kill)
    assert list(run.refused) == [second]
    assert_same(run, here(gguf, document, prompts, max_tokens=4))


def test_an_agent_that_ends_each_worker_is_one_agents_failure(gguf, document, prompts, tmp_path):
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), local_cluster(1) as client:

        def deadly(names):
            if "agent 1" in names:
                os.kill(os.getpid(), signal.SIGKILL)

        hooked(client, deadly)
        run = there(client, gguf, document, prompts, max_tokens=2)
    assert list(run.errors) == ["agent 1"]
    assert sum(map(bool, run.answers.values())) == len(prompts) - 1


def test_nothing_is_left_behind(gguf, document, prompts):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with local_cluster(2) as client:
        there(client, gguf, document, prompts, max_tokens=2)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    psutil.wait_procs(left, timeout=10)
    assert not [child for child in left if child.is_running() and "resource_tracker" not in " ".join(child.cmdline())]


# -- what it costs


def test_workers_are_measured_against_one_process(gguf, document, prompts):
    with lab.load_model(gguf) as model:
        rows = against_one_process(model, document, prompts, [(1, 1)], max_tokens=4, repeats=2)
        assert list(rows.workers) == [0, 1, 0, 1]
        assert rows.same.all()
        assert list(cluster_table(rows).crew) == ["1 x 1"]


def test_the_figure_by_worker_says_who_died():
    rows = [
        ("prefix", "prefill", 0, 900, 0, "a"),
        ("one", "generate", 900, 1500, 0, "a"),
        ("two", "generate", 9, 99, 0, "b"),
    ]
    frame = pd.DataFrame(rows, columns=["agent", "phase", "start_ms", "end_ms", "bytes", "worker"])
    for died, n_marks in (("", 0), ("b", 1)):
        (ax,) = studies.workers_timeline(frame, "here", died).axes
        assert sum(line.get_marker() == "x" for line in ax.lines) == n_marks
