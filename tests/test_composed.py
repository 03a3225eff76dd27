"""Composed: agents with prompts of their own before the document share its cells."""

import pickle

import numpy as np
import pytest

import swarmkv_lab as lab

AT = 64


@pytest.fixture
def agents(rng):
    """Three agents with heads of three lengths."""
    ids = lambda n: rng.integers(0, 256, n, dtype=np.int32)  # noqa: E731
    return {f"a{n}": (ids(n), ids(5 + n % 3)) for n in (9, 20, 33)}


@pytest.fixture
def placed(twin, document, agents):
    return lab.prefill(twin, document, behind=agents["a20"][0], at=AT, progress=False)


def at_its_place(model, branch, document):
    """The logits of a whole prefill that ends where the composed one does."""
    with model.context(1024) as ctx:
        head = branch.head
        ctx.decode(head, start=AT - len(head))
        ctx.decode(document)
        ctx.decode(branch.prompt)
        return ctx.logits()


@pytest.mark.parametrize("packed", [False, True])
def test_behind_its_own_head_or_all_anew_it_is_the_whole_prefill(twin, document, agents, placed, packed):
    for recompute, same in ((0, ["a20"]), (len(document), list(agents))):
        run = lab.fan_out(twin, placed, agents, "composed", recompute=recompute, packed=packed, max_tokens=3)
        for branch in run.branches:
            difference = np.abs(branch.logits - at_its_place(twin, branch, document)).max()
            assert (difference < 1e-3) == (branch.name in same), (branch.name, difference)


def test_tokens_are_counted_and_no_bytes_move(twin, document, agents, placed):
    tails = sum(len(question) for _, question in agents.values())
    heads = sum(len(head) for head, _ in agents.values())
    full = lab.fan_out(twin, placed, agents, "naive", max_tokens=2)
    assert full.metrics["computed_tokens"] == heads + 3 * len(document) + tails
    for branch in full.branches:
        head, question = agents[branch.name]
        np.testing.assert_array_equal(full.whole_prompt(branch), np.concatenate([head, document, question]))
    run = lab.fan_out(twin, placed, agents, "composed", recompute=32, max_tokens=2)
    assert run.metrics["computed_tokens"] == heads + 3 * 32 + tails
    assert run.metrics["copied_bytes"] == placed.nbytes  # the one restore
    made = lab.fan_out(twin, document, agents, "composed", recompute=32, max_tokens=2)  # behind the first one's head
    assert made.metrics["computed_tokens"] == 9 + len(document) + heads + 3 * 32 + tails
    assert made.metrics["prompt_tokens"] == full.metrics["prompt_tokens"]


def test_a_snapshot_says_what_it_is_and_is_never_an_exact_one(twin, document, agents, placed, tmp_path):
    assert (placed.identity.start, placed.identity.exact) == (AT, False)
    assert "20 tokens" in placed.identity.composed
    path = tmp_path / "doc.kv.safetensors"
    placed.save(path)
    loaded = lab.KVSnapshot.load(path, twin)
    np.testing.assert_array_equal(loaded.data, placed.data)
    assert loaded.identity.composed == placed.identity.composed
    assert lab.KVSnapshot.describe(path)["composed"] == placed.identity.composed
    question = next(iter(agents.values()))[1]
    for strategy in lab.STRATEGIES:
        if strategy != "naive":
            with pytest.raises(lab.SwarmKVError, match=str(AT)):
                lab.fan_out(twin, loaded, [question], strategy)
    with pytest.raises(lab.SwarmKVError):
        lab.prefill(twin, document, at=AT, cache=True)


def test_a_capture_of_a_composed_sequence_is_the_same_again(twin, document, agents, placed):
    head, question = agents["a9"]
    with twin.context(1024, n_seq_max=3) as ctx:
        placed.restore(ctx)
        ctx.decode(head, 1, start=AT - len(head))
        ctx.decode(document[:8], 1)
        ctx.splice(0, 1)
        ctx.decode(question, 1)
        whole = np.concatenate([head, document, question])
        captured = lab.KVSnapshot.capture(ctx, whole, 1)
        assert captured.identity.start == AT - len(head)
        assert str(AT + 8) in captured.identity.composed
        ctx.clear()
        pickle.loads(pickle.dumps(captured)).restore(ctx, 2)
        again = lab.KVSnapshot.capture(ctx, whole, 2)
    assert again.identity == captured.identity
    assert again.identity.composed == captured.identity.composed
    for layer in range(twin.geometry.n_layer):
        np.testing.assert_array_equal(again.state().keys(layer), captured.state().keys(layer))


def test_what_does_not_fit_together_is_refused(twin, document, agents, placed):
    long = {"long": (np.zeros(AT + 1, np.int32), agents["a9"][1])}
    with pytest.raises(lab.SwarmKVError, match=str(AT + 1)):
        lab.fan_out(twin, placed, long, "composed")
    with pytest.raises(lab.SwarmKVError):
        lab.fan_out(twin, document, agents, "shared")
    with pytest.raises(lab.SwarmKVError):
        lab.fan_out(twin, document, [agents["a9"][1]], "composed")
    with pytest.raises(lab.SwarmKVError):
        lab.fan_out(twin, document, agents | {"plain": agents["a9"][1]}, "composed")
    with pytest.raises(lab.SwarmKVError, match="19"):
        lab.prefill(twin, document, behind=agents["a20"][0], at=19)
    with twin.context(1024, n_seq_max=3) as ctx:
        placed.restore(ctx)
        ctx.decode(agents["a9"][0], 1)  # it ends at 9
        with pytest.raises(lab.SwarmKVError, match=f"{AT}"):
            ctx.splice(0, 1)
        ctx.decode(np.resize(document, len(document) + 1), 2, start=AT)
        with pytest.raises(lab.SwarmKVError):
            ctx.splice(0, 2)


def test_words_of_the_real_model(real):
    roles = {"short": ("Be short.", "What is it?"), "long": ("You read licences with great care.", "Whose is it?")}
    run = lab.fan_out(real, "The code is Go's. " * 20, roles, "composed", max_tokens=2)
    text = real.detokenize(run.whole_prompt(run.branches[1]), special=True)
    assert text.index("licences") < text.index("Go's") < text.index("Whose")
    full = lab.fan_out(real, "The code is Go's. " * 20, roles, "naive", max_tokens=2)
    assert (run.compare(full).kl < 0.1).all()
    with pytest.raises(lab.SwarmKVError):  # it would have two beginnings
        lab.prefill(real, real.read("The code is Go's."), behind="Be short.")
