"""Pipelines from TOML files: what they say, and what they get wrong."""

import numpy as np
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
sampling = { temperature = 0.7, seed = 4 }
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "notes.txt").write_text("The shared cache holds every key and value of the document. " * 8)
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "spec.toml"


@pytest.fixture
def speaking(twin, monkeypatch):
    """The twin, as if it could read and be asked in words: a token for each word."""
    for name in ("read", "ask"):
        monkeypatch.setattr(lab.Model, name, lambda model, text: np.arange(len(text.split()), dtype=np.int32) % 256)
    return twin


def test_a_file_says_what_the_classes_say(speaking, spec):
    pipeline = studies.load_pipeline(spec, speaking, n_tokens=44)
    assert len(pipeline.tokens) == 44  # of 88
    assert pipeline.agents == [
        lab.Agent("early", "What is it?", prefix_tokens=10, max_tokens=3),
        lab.Agent("late", "And then?", after=["early"], sampling=lab.Sampling(temperature=0.7, seed=4)),
    ]


@pytest.mark.parametrize(("was", "now", "said"), [
    ("prompt = \"What is it?\"\n", "", "agents.early"),
    ("max_tokens = 3", "max_token = 3", "max_token"),

    ("seed = 4", "sead = 4", "sead"),
    ("{ temperature = 0.7, seed = 4 }", "7", "7"),
    ("[agents.late]", "[agents.early]", "spec.toml"),
    ("after = [\"early\"]", f"after = {'[' * 5000}{']' * 5000}", "spec.toml"),
    ("after = [\"early\"]", "after = [\"nobody\"]", "nobody"),
    ("document = \"notes.txt\"\n", "", "document"),
    ("notes.txt", "nothing.txt", "nothing.txt"),
    ("prefix_tokens = 20", "prefix_tokens = 89", "89.* 88"),
    ("[agents.early]", "[agents]\nearly = 3\n[agents.other]", "3"),
])  # fmt: skip
def test_what_a_file_gets_wrong_is_said(speaking, spec, was, now, said):
    assert was in SPEC
    spec.write_text(SPEC.replace(was, now))
    with pytest.raises(lab.SwarmKVError, match=said):
        studies.load_pipeline(spec, speaking)
