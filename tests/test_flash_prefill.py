"""flash_attn="prefill": the document with flash attention, what follows without it, and every claim of both holds."""

import json

import numpy as np
import pytest
from conftest import SHAPES, load_shape

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.geometry import KVGeometry
from swarmkv_lab.snapshot.file import SnapshotHeader
from swarmkv_lab.snapshot.layout import other_layout
from swarmkv_lab.snapshot.prefill import prefill_into
from swarmkv_studies.common.twins import write_twin

EXACT = ["swarmkv", "pooled", "shared"]
APART = {"flash_attn": "prefill"}


@pytest.fixture
def agents(rng):
    return {f"a{n}": rng.integers(0, 256, n, dtype=np.int32) for n in (1, 5, 12, 40)}


def captured(model, document, **settings):
    with model.context(512, **settings) as ctx:
        ctx.decode(document)
        return lab.KVSnapshot.capture(ctx, document)


def open_with_flash(model):
    return [ctx for ctx in model._contexts if ctx._free.alive and ctx.flash_attn]


# -- the bits


@pytest.mark.parametrize("shape", SHAPES)
def test_every_strategy_is_naive_and_naive_is_what_it_says(shape, document, agents, tmp_path):
    with load_shape(shape, tmp_path) as model:
        naive = lab.fan_out(model, document, agents, "naive", max_tokens=8, **APART)
        for strategy in EXACT:
            exactness = lab.fan_out(model, document, agents, strategy, max_tokens=8, **APART).compare(naive)
            assert exactness.max_abs_logit_diff.max() == 0, strategy
            assert exactness.same_tokens.all(), strategy
        batched = lab.fan_out(model, document, agents, "batched", max_tokens=8, **APART).compare(naive)
        assert batched.max_abs_logit_diff.max() < 0.05
        with model.context(512, **APART) as ctx:  # by hand
            captured(model, document, flash_attn=True).without_flash_attention().restore(ctx)
            ctx.decode(agents["a12"])
            np.testing.assert_array_equal(ctx.logits(), naive.branches[2].logits)
        if shape != "one layer":  # whose keys and values come after no attention
            for flash_attn in (False, True):
                other = lab.fan_out(model, document, agents, "naive", max_tokens=8, flash_attn=flash_attn)
                assert 0 < naive.compare(other).max_abs_logit_diff.max() < 0.05


@pytest.mark.parametrize("kv_type", ["f32", "bf16", ("q8_0", "f16"), ("f16", "f32")])
def test_every_kv_type_with_values_that_can_be_turned(document, agents, kv_type, tmp_path):
    with load_shape("wide heads", tmp_path) as model:
        naive, shared = (
            lab.fan_out(model, document, agents, strategy, max_tokens=4, kv_type=kv_type, **APART)
            for strategy in ("naive", "shared")
        )
        without = lab.fan_out(model, document, agents, "naive", max_tokens=4, kv_type=kv_type, flash_attn=False)
    assert shared.compare(naive).max_abs_logit_diff.max() == 0
    assert naive.compare(without).max_abs_logit_diff.max() < 0.05


@pytest.mark.parametrize("depth", [38, 43, 60, 73])
def test_windows_are_exact_without_swa_full_too_as_naive_begins_with_a_state_as_well(depth, document, agents, tmp_path):
    with load_shape("sliding window", tmp_path) as model:
        plain = [lab.fan_out(model, document[:depth], agents, name, max_tokens=3) for name in ("naive", "shared")]
        assert plain[1].compare(plain[0]).max_abs_logit_diff.max() > 0  # so that the depth tells the two apart
        naive = lab.fan_out(model, document[:depth], agents, "naive", max_tokens=3, **APART)
        for strategy in EXACT:
            run = lab.fan_out(model, document[:depth], agents, strategy, max_tokens=3, **APART)
            assert run.compare(naive).max_abs_logit_diff.max() == 0, strategy


def test_a_split_cache(twin, document, question):
    how = {"n_seq_max": 2, "kv_unified": False, **APART}
    with twin.context(1024, **how) as ctx, twin.context(512, **APART) as unified:
        for one, seq_id in ((ctx, 1), (unified, 0)):
            prefill_into(one, document, seq_id)
            one.decode(question, seq_id)
        np.testing.assert_array_equal(ctx.logits(1), unified.logits())


def graph(last, *marks):
    agents = [Agent(f"at {n}", [n % 251] * 40, prefix_tokens=n, max_tokens=10) for n in marks]
    return [*agents, Agent("whole", [6, 7], max_tokens=10), Agent("reviewer", [9], ["whole", agents[0].name], last)]


@pytest.mark.parametrize(
    ("shape", "n_batch", "marks", "late"),  # late: what the last agent reads; windows cannot go back
    [("two layers", 64, (64, 128, 256), 128), ("sliding window", 512, (512, 1024), None)],
)
def test_watermarks(shape, n_batch, marks, late, tmp_path, rng):
    """They are ends of naive's batches too. With windows the cache that reads on must be the one that has read."""
    tokens = rng.integers(0, 256, marks[-1] + 200, dtype=np.int32)
    with load_shape(shape, tmp_path) as model:
        pipeline = Pipeline(model, tokens, graph(late, *marks))
        naive = pipeline.run("naive", n_batch=n_batch, **APART)
        for strategy in (*EXACT, "batched"):
            run = pipeline.run(strategy, n_batch=n_batch, **APART)
            assert run.errors == {}
            phases = run.timeline[run.timeline.agent == "prefix"].phase.value_counts()
            assert phases["prefill"] == len(marks) + 1  # one span a watermark, all that it takes in it
            if strategy != "batched":
                assert run.compare(naive).max_abs_logit_diff.max() == 0, strategy
                assert run.compare(naive).same_tokens.all(), strategy


# -- the two layouts


@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", ("f32", "f16"), ("q8_0", "f32")])
def test_turned_bytes_are_those_that_llama_cpp_writes(document, kv_type, tmp_path):
    """A layer that comes after no attention has the same keys and values with every kernel: all bytes are the same."""
    geometry = KVGeometry(1, 3, 64, 96, 4096)
    with lab.load_model(write_twin(tmp_path / "twin.gguf", geometry)) as model:
        for n in (1, 15, 16, 300):
            on, off = (captured(model, document[:n], kv_type=kv_type, flash_attn=flash) for flash in (True, False))
            before = on.data.copy()
            assert (on.data != off.data).any()
            np.testing.assert_array_equal(other_layout(on.data, geometry), off.data)
            np.testing.assert_array_equal(other_layout(off.data, geometry), on.data)
            np.testing.assert_array_equal(on.data, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("swa_full", [False, True])
def test_turned_twice_it_is_the_original(shape, swa_full, document, tmp_path):
    with load_shape(shape, tmp_path) as model:
        on, off = (captured(model, document, flash_attn=flash, swa_full=swa_full) for flash in (True, False))
        turned = on.without_flash_attention()
        np.testing.assert_array_equal(other_layout(turned.data, model.geometry), on.data)
        assert turned.state().parts.equals(off.state().parts)  # every offset, size and number
        for layer in range(model.geometry.n_layer) if model.geometry.head_dim_v else ():
            np.testing.assert_array_equal(turned.state().values(layer), on.state().values(layer))
    assert not np.shares_memory(turned.data, on.data)
    assert turned.without_flash_attention() is turned
    assert off.without_flash_attention() is off


def test_values_that_cannot_be_turned(document, tmp_path):
    with load_shape("one layer", tmp_path) as model:
        for kv_type in ("q8_0", "q4_0"):
            snapshot = captured(model, document, kv_type=("f16", kv_type))
            with pytest.raises(lab.SwarmKVError, match="V of layer 0 is quantized"):
                snapshot.without_flash_attention()


def test_damage_is_found_before_anything_is_turned(twin, document):
    whole = captured(twin, document, flash_attn=True)
    flag = int(whole.state().parts.set_index("part").offset["values transposed"])
    position = whole.data.copy()
    position[int(whole.state().parts.set_index("part").offset["cells' positions and sequences"])] ^= 1
    for data, words in ((whole.data[:-1].copy(), "would end at"), (position, "positions")):
        damaged = lab.KVSnapshot(data, whole.tokens, whole.identity)
        with pytest.raises(lab.SnapshotCorruptError, match=words):
            damaged.without_flash_attention()
    lies = whole.data.copy()
    lies[flag] = 1
    with pytest.raises(lab.SnapshotCorruptError, match="V of layer 0: "):
        lab.KVSnapshot(lies, whole.tokens, whole.identity).without_flash_attention()


# -- what it belongs to


def test_the_identity_tells_how_it_was_computed_and_a_mismatch_names_both(twin, document, question):
    snapshots = {flash: lab.prefill(twin, document, flash_attn=flash) for flash in (False, True, "prefill")}
    for mine, snapshot in snapshots.items():
        assert snapshot.identity.flash_attn == mine
        for its in snapshots:
            with twin.context(512, flash_attn=its) as ctx:
                if mine == its:
                    snapshot.restore(ctx)
                    ctx.decode(question)
                    again = lab.KVSnapshot.capture(ctx, [*document, *question])
                    assert again.identity.flash_attn == mine
                    continue
                words = f"flash_attn {mine!r}, the context has {its!r}"
                with pytest.raises(lab.SnapshotMismatchError, match=words):
                    snapshot.restore(ctx)
                assert ctx.n_past() == 0


def test_a_file_keeps_it_and_booleans_are_written_as_before(twin, document, agents, tmp_path):
    for flash, written in ((False, "false"), (True, "true"), ("prefill", "prefill")):
        lab.prefill(twin, document, flash_attn=flash).save(tmp_path / "doc")
        assert lab.describe(tmp_path / "doc")["flash_attn"] == written
        loaded = lab.KVSnapshot.load(tmp_path / "doc", twin)
        run = lab.fan_out(twin, loaded, agents, "shared", max_tokens=2)  # its settings are the snapshot's
        naive = lab.fan_out(twin, loaded, agents, "naive", max_tokens=2)
        assert run.settings.flash_attn == naive.settings.flash_attn == flash
        assert "prefill" not in set(run.timeline.phase)
        assert run.compare(naive).max_abs_logit_diff.max() == 0


@pytest.mark.parametrize(
    ("said", "layout", "words"),
    [
        ("prefill", "rows", "values are not transposed, and its header says flash_attn='prefill'"),
        ("true", "transposed", "values are transposed, and its header says flash_attn=True"),
        ("decode", "transposed", "does not say"),
        ('"prefill"', "transposed", "does not say"),
        ("1", "transposed", "does not say"),
    ],
)
def test_a_header_that_lies(twin, document, tmp_path, said, layout, words):
    snapshot = lab.prefill(twin, document, flash_attn=True if layout == "rows" else "prefill")
    header = SnapshotHeader.of(snapshot.identity, snapshot.tokens, snapshot.data)
    header.metadata["flash_attn"] = said
    header.metadata["header_checksum"] = header._seal(snapshot.tokens)
    (tmp_path / "doc").write_bytes(header.render() + snapshot.tokens.tobytes() + snapshot.data.tobytes())
    with pytest.raises(lab.SnapshotCorruptError, match=words):
        lab.KVSnapshot.load(tmp_path / "doc", twin)


# -- what is refused


def test_a_context_goes_on_and_does_not_begin(twin, document, question):
    snapshot = lab.prefill(twin, document, **APART)
    with twin.context(1024, n_seq_max=2, **APART) as ctx:
        for tokens in ({0: question}, {1: question}):
            with pytest.raises(lab.SwarmKVError, match=r"is empty, and with flash_attn='prefill'.*restore a snapshot"):
                ctx.decode_many(tokens)
        snapshot.restore(ctx)
        with pytest.raises(lab.SwarmKVError, match="sequence 1 is empty"):
            ctx.decode_many({0: question, 1: question})
        assert (ctx.n_past(0), ctx.n_past(1)) == (len(document), 0)
        with ctx.fork(1) as (fork,):
            ctx.decode(question, fork)
        ctx.decode(question)
        ctx.clear()
        with pytest.raises(lab.SwarmKVError, match="sequence 0 is empty"):
            ctx.decode(question)


def test_quantized_values_need_flash_attention_throughout(twin, document):
    with pytest.raises(lab.SwarmKVError, match="V as q8_0 needs flash attention: pass flash_attn='auto' or True"):
        lab.prefill(twin, document, kv_type="q8_0", **APART)


def test_a_state_of_unknown_layout(twin, document, agents, monkeypatch):
    monkeypatch.setattr(lab.Model, "sized", False)
    decoded = []
    monkeypatch.setattr(lab.Context, "_decode_chunk", lambda *_: decoded.append(1))
    for strategy in lab.STRATEGIES:
        with pytest.raises(lab.SwarmKVError, match=r"twin \(llama\): the layout of its state is not known"):
            lab.fan_out(twin, document, agents, strategy, **APART)
    with pytest.raises(lab.SwarmKVError, match="pass flash_attn=True or False"):
        lab.prefill(twin, document, **APART)
    assert decoded == []


def test_a_document_that_does_not_fit_is_refused_before_it_is_read(twin, document, monkeypatch):
    monkeypatch.setattr(lab.Context, "_decode_chunk", lambda *_: 1 / 0)
    with twin.context(256, **APART) as ctx, pytest.raises(lab.ContextBudgetError, match="300 more do not fit"):
        prefill_into(ctx, document)
    assert open_with_flash(twin) == []


def test_whoever_cannot_change_it_on_the_way_takes_it_off():
    for on_gpu in (False, True):
        assert not ContextSettings(flash_attn="prefill").uses_flash_attn(on_gpu)


# -- what it costs


@pytest.mark.parametrize(
    ("strategy", "copies"), list(zip(lab.STRATEGIES, [4 * 3, 2 + 4 * 2, 2 + 4, 3, 3], strict=True))
)
def test_every_copy_and_every_context_is_counted(twin, document, agents, strategy, copies):
    run = lab.fan_out(twin, document, agents, strategy, max_tokens=2, **APART)
    snapshot = twin.geometry.snapshot_bytes(300)
    tails = 1 + 5 + 12 + 40 + 4 * 2 if strategy == "batched" else 40 + 2
    context = twin.geometry.cache_bytes(300 + tails)
    held = (1 if strategy == "swarmkv" else 2) * context + 2 * snapshot
    assert run.metrics["copied_bytes"] == copies * snapshot
    assert run.metrics["kv_bytes"] == held
    assert {"prefill", "branch"} <= set(run.timeline.phase)
    assert "capture" not in set(run.timeline.phase)


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
def test_the_context_with_flash_attention_ends_with_the_last_watermark(twin, rng, strategy):
    seen = []
    tokens = rng.integers(0, 256, 256, dtype=np.int32)

    def callback(run):
        seen.append((run.timeline.phase.iloc[-1], len(open_with_flash(twin))))

    pipeline = Pipeline(twin, tokens, graph(64, 64, 128))
    pipeline.run(strategy, n_batch=32, callback=callback, **APART)
    prefills = [at for at, (phase, _) in enumerate(seen) if phase == "prefill"]
    documents = 64 + 128 + 256 + 64 if strategy == "naive" else 256
    assert len(prefills) == documents / 32  # told before each llama_decode, as anywhere
    assert all(seen[at] == ("prefill", 1) for at in prefills)
    assert all(n == 0 for _, n in seen[prefills[-1] + 1 :])
    assert open_with_flash(twin) == []


@pytest.mark.parametrize("strategy", lab.STRATEGIES)
@pytest.mark.parametrize("at", [1, 3, 6])
def test_an_interrupt_in_the_prefill_leaves_nothing(twin, document, agents, strategy, at):
    calls = []

    def callback(run):
        calls.append(run)
        if len(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # with it its frames, and so what they did not close
        lab.fan_out(twin, document, agents, strategy, max_tokens=2, n_batch=64, callback=callback, **APART)
    assert calls[-1].timeline.phase.iloc[-1] == ("prefill" if at < 6 else "branch")
    assert [ctx for ctx in twin._contexts if ctx._free.alive] == []
    assert kept.type is KeyboardInterrupt
    after = lab.fan_out(twin, document, agents, strategy, max_tokens=2, n_batch=64, **APART)
    assert len(after.agents) == 4


def test_agents_in_threads(twin, document, agents):
    pipeline = Pipeline(twin, document, [Agent(name, prompt, max_tokens=3) for name, prompt in agents.items()])
    for strategy in ("naive", "swarmkv"):
        one, several = (pipeline.run(strategy, threads=n, **APART) for n in (1, 3))
        assert several.compare(one).max_abs_logit_diff.max() == 0
        assert several.metrics["copied_bytes"] == one.metrics["copied_bytes"]


@pytest.mark.filterwarnings("ignore:.*are in a larger format")
def test_what_measures_takes_it_too(twin, document, agents, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    formats = studies.weight_formats(twin, document, ["q8_0"], repeats=1, continuation=9, progress=False, **APART)
    assert 0 < formats.kl_mean[1] < 1e-2
    assert studies.measure_kv(twin, 100, **APART)["difference"] == 0
    report, _ = studies.bench(
        twin, document, depth=300, n_agents=2, strategies=["naive", "shared"], repeats=1, max_tokens=2, agents=agents,
        **APART,
    )  # fmt: skip
    assert report["environment"]["settings"]["flash_attn"] == "prefill"
    assert report["restore"]["bytes"] == twin.geometry.snapshot_bytes(300)
    assert report["summary"]["shared"]["max_abs_logit_diff"] == 0
    json.dumps(report)
