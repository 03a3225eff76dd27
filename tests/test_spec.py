"""Pipelines from TOML files: read, checked with words, and run from the command line."""

import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies

SPEC = """
document = "notes.txt"

[agents.early]
prompt = "What is it?"
prefix_tokens = 20
max_tokens = 3

[agents.late]
prompt = "And then?"
after = ["early"]
max_tokens = 2
sampling = { temperature = 0.7, seed = 4 }
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "notes.txt").write_text("The shared cache holds every key and value of the document. " * 8)
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    return path


@pytest.mark.real
def test_a_file_says_what_the_classes_say(real, spec):
    pipeline = studies.load_pipeline(spec, real)
    early, late = pipeline.agents
    assert (early.prefix_tokens, early.max_tokens, early.sampling) == (20, 3, lab.Sampling())
    assert (late.after, late.prefix_tokens, late.sampling) == (["early"], None, lab.Sampling(temperature=0.7, seed=4))
    text = real.detokenize(pipeline.tokens, special=True)
    assert "user\nThe shared cache holds" in text  # where the model's template wants it


@pytest.mark.real
def test_the_dossiers_pipeline_at_any_length(real):
    whole, short = studies.load_pipeline("dossier", real), studies.load_pipeline("dossier", real, n_tokens=700)
    assert len(whole.tokens) == 7000
    assert len(short.tokens) == 700
    for agent, shorter in zip(whole.agents, short.agents, strict=True):
        if agent.prefix_tokens:
            assert shorter.prefix_tokens == agent.prefix_tokens // 10
    assert [agent.name for agent in whole.agents if agent.prefix_tokens] == ["security", "licence"]
    assert whole.agents[-1].after == ["security", "licence", "cost", "reliability"]


@pytest.mark.real
@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("prompt = \"What is it?\"\n", "", r"spec.toml: agents.early has no prompt"),
        ("max_tokens = 3", "max_token = 3", "agents.early: 'max_token' is not one of prompt, after, "),
        ("max_tokens = 3", "max_tokens = '3'", "agents.early: max_tokens is '3', of the wrong type"),
        ("max_tokens = 3", "max_tokens = true", "max_tokens is True, of the wrong type"),
        ("seed = 4", "sead = 4", "agents.late.sampling: 'sead' is not one of temperature, "),
        ("seed = 4", "top_p = 7", "top_p=7: it must be"),
        ("[agents.late]", "[agents.early]", "spec.toml is not TOML: "),
        ("after = [\"early\"]", "after = [\"nobody\"]", "late comes after nobody"),
        ("document = \"notes.txt\"\n", "", "spec.toml has no document"),
        ("notes.txt", "nothing.txt", "nothing.txt"),
        ("prefix_tokens = 20", "prefix_tokens = 0", "agents.early.prefix_tokens=0: it must be a whole number from 1"),
        ("prefix_tokens = 20", "prefix_tokens = -5", "agents.early.prefix_tokens=-5: it must be a whole number from 1"),
        ("prefix_tokens = 20", "prefix_tokens = 2.5", "prefix_tokens is 2.5, of the wrong type"),
        ("max_tokens = 3", f"max_tokens = {'9' * 5000}", "spec.toml is not TOML: "),
        ("max_tokens = 3", f"max_tokens = {'9' * 400}", "early: max_tokens=9+: it must be a whole number"),
        ("temperature = 0.7", f"temperature = {'9' * 400}", "temperature=9+: it must be"),
        ("after = [\"early\"]", f"after = {'[' * 5000}{']' * 5000}", "spec.toml is not TOML: "),
        ("after = [\"early\"]", "after = [3]", "late: after=.+, and it is a list of agents' names"),
        ("[agents.early]", "[agents]\nearly = 3\n[agents.other]", "agents.early is 3: it must be a table"),
        ("document =", "tokens = 9000\ndocument =", r"tokens=9000: it must be a whole number from 1 to \d+"),
    ],
)  # fmt: skip
def test_what_a_file_gets_wrong_is_said(real, spec, was, now, message):
    assert was in SPEC
    spec.write_text(SPEC.replace(was, now))
    with pytest.raises(lab.SwarmKVError, match=message):
        studies.load_pipeline(spec, real)


def test_a_file_that_is_not_there(twin):
    with pytest.raises(lab.SwarmKVError, match=r"nowhere.toml could not be read: No such file"):
        studies.load_pipeline("nowhere.toml", twin)
