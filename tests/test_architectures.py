"""The main kinds of model: what each is, its bytes, strategies to the bit, saving and caching, and what is refused."""

import copy
import pickle
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import zoo
from conftest import SHAPES

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.fanout.pipeline import Agent, Pipeline
from swarmkv_lab.files import REFERENCE
from swarmkv_studies.common.twins import write_twin
from swarmkv_studies.kv_sizing.architectures import architectures, generate

EXACT = ["swarmkv", "pooled", "shared"]
WITHOUT_MEMORY = ["bert", "dream"]
KINDS = [name for name in zoo.KINDS if name not in WITHOUT_MEMORY]
WINDOWED = {"gpt-oss": zoo.WINDOW, "gemma4": zoo.WINDOW, "lfm2-window": zoo.WINDOW, "llama4": 8192}
RUNNING = ["qwen35", "lfm2", "lfm2-window", "granitehybrid", "mamba2"]  # layers with a state that has no past
N = 150  # tokens: past a window of 32, and the learned positions have room for questions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each kind's model, loaded when it is asked for."""
    loaded = {}

    def model(kind):
        if kind not in loaded:
            path = tmp_path_factory.mktemp("model") / f"{kind}.gguf"
            made = zoo.write(kind, path) if kind in zoo.KINDS else write_twin(path, SHAPES[kind])
            loaded[kind] = lab.load_model(made)
        return loaded[kind]

    yield model
    for one in loaded.values():
        one.close()


@pytest.fixture(params=KINDS)
def model(models, request):
    return models(request.param)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, 256, 2000, dtype=np.int32)


@pytest.fixture
def agents(rng):
    return {f"a{n}": rng.integers(0, 256, n, dtype=np.int32) for n in (1, 12, 40)}


def identical(run, naive):
    exactness = run.compare(naive)
    assert exactness.max_abs_logit_diff.max() == 0, run.strategy
    assert exactness.same_tokens.all(), run.strategy


# -- what it is


def test_llama_cpp_says_what_a_model_is(model):
    said, kind = model.kind, model.path.stem
    assert said.recurrent == (kind in RUNNING)
    assert said.window == WINDOWED.get(kind, 0)
    assert said.has_axes == (kind in ("mrope", "qwen35"))
    assert said.absolute == (kind == "absolute")
    assert said.long_rope_from == (512 if kind == "longrope" else None)


@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_what_keeps_no_memory_is_refused_before_a_decode(tmp_path, kind):
    path = zoo.write(kind, tmp_path / "model.gguf")
    with pytest.raises(lab.SwarmKVError), lab.load_model(path) as model, model.context(256):
        pass


# -- the strategies


@pytest.mark.parametrize(("kind", "kv_type"), [
    *((kind, "f16") for kind in (*KINDS, *SHAPES) if kind != "80 layers"),  # those are gone on from below
    *((kind, "q8_0") for kind in ("mrope", "gemma4", "qwen35", "deepseek32")),
])  # fmt: skip
def test_every_strategy_is_naives_to_the_bit(models, tokens, agents, kind, kv_type):
    how = {"max_tokens": 6, "swa_full": True, "kv_type": kv_type}
    naive = lab.fan_out(models(kind), tokens[:N], agents, "naive", **how)
    for strategy in EXACT:
        identical(lab.fan_out(models(kind), tokens[:N], agents, strategy, **how), naive)
    batched = lab.fan_out(models(kind), tokens[:N], agents, "batched", **how).compare(naive)
    assert batched.max_abs_logit_diff.max() < 0.05
    assert batched.kl.max() < (1e-4 if kv_type == "f16" else 1e-3)


@pytest.mark.parametrize("kind", ["gpt-oss", "gemma4", "lfm2-window"])
def test_a_window_slides_far_past_its_cells(models, tokens, agents, kind):
    how = {"max_tokens": 3, "n_batch": 64}  # of windowed layers a context of two sequences has 256 cells
    for n, exact in ((20, EXACT), (700, [])):  # past the window the order of cells is another, and so rounding
        naive = lab.fan_out(models(kind), tokens[:n], agents, "naive", **how)
        for strategy in [*EXACT, "batched"]:
            compared = lab.fan_out(models(kind), tokens[:n], agents, strategy, **how).compare(naive)
            assert compared.max_abs_logit_diff.max() <= (0 if strategy in exact else 0.05), (n, strategy)
            assert compared.kl.max() < 1e-4, (n, strategy)


@pytest.mark.parametrize("kind", ["two layers", "nope", "mrope", *RUNNING, "deepseek32"])
def test_agents_at_watermarks_are_naives_to_the_bit(models, tokens, kind):
    """Also one whose turn comes when the prefill has passed its watermark, and a running state cannot go back."""
    pipeline = Pipeline(models(kind), tokens[:192], [
        Agent("early", [1, 2], prefix_tokens=64, max_tokens=3),
        Agent("middle", [3], prefix_tokens=128, max_tokens=3),
        Agent("whole", [4, 5, 6], max_tokens=3),
        Agent("late", [7], after=["early", "whole"], prefix_tokens=64, max_tokens=3),
    ])  # fmt: skip
    naive = pipeline.run("naive", n_batch=64, swa_full=True).whole()
    for strategy in EXACT:
        identical(pipeline.run(strategy, n_batch=64, swa_full=True).whole(), naive)
    assert pipeline.run("batched", n_batch=64).errors == {}


# -- bytes, files, the prefix cache


@pytest.mark.parametrize("kind", [*KINDS, *SHAPES])
def test_a_saved_copied_or_pickled_snapshot_is_gone_on_from_to_the_bit(models, tokens, tmp_path, kind):
    model = models(kind)
    with model.context(512) as ctx:
        ctx.decode(tokens[:N])
        snapshot = lab.KVSnapshot.capture(ctx, tokens[:N])
        ctx.decode(tokens[N : N + 9])
        expected = ctx.logits()
    snapshot.save(tmp_path / "a.kv.safetensors")
    loaded = lab.KVSnapshot.load(tmp_path / "a.kv.safetensors", model)
    pickled = pickle.loads(pickle.dumps(loaded))
    for again in (loaded, pickled, snapshot.copy(), copy.copy(snapshot), copy.deepcopy(snapshot)):
        assert again.identity == snapshot.identity
        for array, its in ((again.data, snapshot.data), (again.tokens, tokens[:N])):
            np.testing.assert_array_equal(array, its)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        with model.context(512) as ctx:
            again.restore(ctx)
            ctx.decode(tokens[N : N + 9])
            np.testing.assert_array_equal(ctx.logits(), expected)


def test_the_prefix_cache_gives_the_bits_of_a_prefill(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("SWARMKV_CACHE", str(tmp_path))
    how = {"n_batch": 64, "progress": False, "swa_full": True}
    fresh = lab.prefill(model, tokens[:N], **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lab.prefill(model, tokens[:128], cache=True, **how)
        for _ in range(2):  # after the shorter one, and then the whole one is found
            np.testing.assert_array_equal(lab.prefill(model, tokens[:N], cache=True, **how).data, fresh.data)


def test_going_back_gives_the_same_bits_or_an_empty_sequence(model, tokens):
    with model.context(512, swa_full=True) as ctx:
        ctx.decode(tokens[:100])
        ctx.decode(tokens[100:110])
        expected = ctx.logits()
        ctx.decode(tokens[200:230])
        if not model.kind.recurrent:
            ctx.truncate(100)
            ctx.decode(tokens[100:110])
            np.testing.assert_array_equal(ctx.logits(), expected)
        else:
            with pytest.raises(lab.SwarmKVError, match="100"):
                ctx.truncate(100)
            assert ctx.n_past() == 0


# -- positions


def test_learned_positions_end(models, tokens):
    absolute = models("absolute")
    with absolute.context(512) as ctx:
        ctx.decode(tokens[:255])
        with pytest.raises(lab.ContextBudgetError, match="256"):
            ctx.decode(tokens[:2])
        ctx.decode(tokens[:1])
        with pytest.raises(lab.ContextBudgetError, match="256"):
            list(ctx.stream(2))
    for strategy in lab.STRATEGIES:
        with pytest.raises(lab.ContextBudgetError, match="256"):
            lab.fan_out(absolute, tokens[:250], [[1, 2, 3]], strategy, max_tokens=4)


def test_only_the_plain_llama_is_shifted(model, tokens):
    with model.context(512) as ctx:
        ctx.decode(tokens[:50])
        with nullcontext() if model.path.stem == "llama" else pytest.raises(lab.SwarmKVError):
            studies.shift(ctx, 10)
        assert ctx.n_past() == (60 if model.path.stem == "llama" else 50)


def test_a_run_or_a_snapshot_stays_on_its_side_of_longropes_limit(models, tokens, agents):
    """The document and a question fit the short side; all questions together, as batched has them, do not."""
    model = models("longrope")
    naive = lab.fan_out(model, tokens[:460], agents, "naive", max_tokens=3)
    for strategy in [*EXACT, "batched"]:
        compared = lab.fan_out(model, tokens[:460], agents, strategy, max_tokens=3).compare(naive)
        assert compared.max_abs_logit_diff.max() <= 0.05 * (strategy == "batched")
    short = lab.prefill(model, tokens[:N], n_ctx=512, progress=False)
    with model.context(513) as ctx, pytest.raises(lab.SnapshotMismatchError):
        short.restore(ctx)
    with model.context(400) as ctx:
        short.restore(ctx)


# -- the table of llama.cpp's architectures


def test_the_table_has_a_row_for_what_is_exact_refused_or_dead(tmp_path, monkeypatch):
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(100))
    zoo.write("qwen35", tmp_path / "hybrid.gguf")
    rows = architectures(tmp_path.glob("*.gguf")).set_index("model")
    assert rows.refused["damaged"].startswith("damaged.gguf")
    hybrid = rows.loc["hybrid"]
    assert (hybrid.kind, hybrid.bytes) == ("hybrid", hybrid.predicted_bytes)
    assert (hybrid[EXACT] == 0).all()
    assert rows.crashed.isna().all()
    # Python runs this file as it starts, so that the process dies after it has said something.
    (tmp_path / "sitecustomize.py").write_text("import os; print('{\"bytes\": 7}', flush=True); os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dead = architectures([tmp_path / "hybrid.gguf"]).iloc[0]
    assert (dead.bytes, dead.crashed[:6]) == (7, "status")


def test_the_tables_claims():
    """No architecture ends the process, or differs without a word; a handful is refused, with a reason."""
    table = pd.read_csv(REFERENCE / "architectures.csv")
    assert len(table) > 120
    assert table.crashed.isna().all()
    loaded = table[table.kind.notna()]
    assert table.refused[table.kind.isna()].notna().all()
    assert len(table) - len(loaded) <= 6
    assert (loaded.bytes == loaded.predicted_bytes).all()
    for column, limit in {**dict.fromkeys(EXACT, 0.0), "batched": 0.05}.items():
        assert (loaded[column].dropna() <= limit).all(), column
        refused = loaded[loaded[column].isna()]
        assert all(column in str(why) for why in refused.refused), column
        assert len(refused) <= 3, column


@pytest.mark.peers
def test_the_generator_makes_them_all(tmp_path):
    known = set(pd.read_csv(REFERENCE / "architectures.csv").model)
    made = {path.stem: path for path in generate(tmp_path)}
    assert set(made) == known
    some = ["deepseek4-moe", "plamo2-dense", "kimi-linear-moe", "minimax-m3-moe", "gemma3-dense", "llada-dense"]
    rows = architectures(made[name] for name in some).set_index("model")
    assert rows.crashed.isna().all()
    assert (rows.drop(index="llada-dense")[EXACT].fillna(0) == 0).all(axis=None)


def test_a_cache_that_no_machine_holds_is_refused_where_no_formula_is_known(models):
    with pytest.raises(lab.ContextBudgetError, match="2,000,000,000"):
        models("lfm2").context(2_000_000_000)
