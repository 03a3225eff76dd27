"""The explorers: what they show is the package's own number, and it follows every control."""

import html
import time
from datetime import UTC, datetime

import pytest

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import geometry
from swarmkv_studies import race_widget, sizing_explorer
from swarmkv_studies.kv_sizing.memory import agents_by_budget, agents_bytes
from swarmkv_studies.tour import race

ALERT = "swarmkv-error"


@pytest.fixture
def explorer():
    return sizing_explorer(model="qwen2.5-7b", tokens=3501, agents=8, budget_gb=8)


def test_its_numbers_are_the_geometrys(explorer):
    shape = geometry("qwen2.5-7b")
    numbers = explorer.numbers
    assert numbers["snapshot_bytes"] == shape.snapshot_bytes(3501) == 200_804_052
    assert numbers["copied_bytes"] == 8 * shape.cache_bytes(3501 + 256)
    assert numbers["shared_bytes"] == shape.cache_bytes(3501 + 8 * 256, n_seq_max=9)
    for layout in ("copied", "shared"):
        fit = numbers[f"{layout}_fit"]
        left = 8 * 10**9 - numbers["weights_bytes"]
        assert agents_bytes(shape, 3501, fit, layout=layout) <= left
        assert fit == 255 or agents_bytes(shape, 3501, fit + 1, layout=layout) > left
        of_figure = agents_by_budget(["qwen2.5-7b"], [8], 3501).set_index("layout").agents
        assert fit == of_figure[layout]  # the widget and the figure count alike
    assert "200.8 MB" in explorer.text.value


def test_a_figure_says_in_words_what_it_shows(explorer):
    """In notebooks, which give a plain image no alt text; and with its settings, when the controls have moved on."""
    kept = explorer.figure()
    explorer.model.value = "gemma-3-27b"
    assert "Model: qwen2.5-7b; Document, tokens: 3,501; Agents: 8" in kept.get_supxlabel()
    bundle, metadata = kept._repr_mimebundle_()
    alt = metadata["image/png"]["alt"]
    assert "qwen2.5-7b" in alt
    assert f'alt="{html.escape(alt)}"' in bundle["text/html"]


@pytest.mark.parametrize(("control", "value"), [
    ("model", "gemma-3-27b"), ("tokens", 32_768), ("agents", 33), ("key_type", "q8_0"), ("value_type", "q4_0"),
    ("budget", 24),
])  # fmt: skip
def test_every_control_changes_the_picture(explorer, control, value):
    before = explorer.picture.value
    getattr(explorer, control).value = value
    assert explorer.picture.value != before
    assert 'src="data:image/png;base64,iVBOR' in explorer.picture.value
    assert explorer.message.value == ""  # what is read out: no table with each step of a slider


@pytest.fixture
def racing(speaker):
    widget = race_widget(speaker, depth=128)
    widget.max_tokens.value = 4
    widget.questions.value = "\n".join(widget.questions.value.splitlines()[:2])
    yield widget
    widget.stop()
    assert widget.wait(60)


def seen(box):
    """The values that an HTML box takes from now on."""
    values = []
    box.observe(lambda change: values.append(change.new), names="value")
    return values


def only(widget, name):
    for other, box in widget.shown.items():
        box.value = other == name


def test_a_race_shows_timelines_and_answers(racing, monkeypatch):
    monkeypatch.setattr(race, "_REDRAW_S", 0)  # each token is shown, but not read out
    said, told = seen(racing.message), seen(racing.text)
    racing.run_button.click()
    assert racing.stop_button.button_style == "primary"
    assert racing.wait(120)
    assert list(racing.runs) == ["naive", "swarmkv", "shared", "batched"]
    assert len(said) == 6  # warming up, a sentence for each strategy, finished: what is read out
    assert any("s left" in text for text in told)
    assert racing.progress.value == 1
    assert "data:image/png" in racing.picture.value
    for text in racing.runs["naive"].answers.values():
        assert html.escape(text) in racing.answers.value
    cut = [len(branch.tokens) == 4 for run in racing.runs.values() for branch in run.branches]
    assert racing.answers.value.count("(cut at 4 tokens)") == sum(cut)
    assert racing.run_button.button_style == "primary"
    buttons = (racing.run_button, racing.stop_button)
    assert [button.disabled for button in buttons] == [False, False]  # it would lose the keyboard's focus
    assert set(racing.timelines()) == set(racing.runs)


def test_a_race_is_stopped_within_a_batch_and_can_run_again(racing):
    racing.depth.value = 2048
    racing.run_button.click()
    while "naive" not in racing.message.value:
        time.sleep(0.01)
    racing.stop_button.click()
    assert racing.wait(60)
    assert racing.runs == {}
    assert set(racing.timelines()["naive"].phase) <= {"context", "prefill"}  # what was under way is still shown
    racing.depth.value = 128
    only(racing, "shared")
    racing.run_button.click()
    assert racing.wait(120)
    assert list(racing.runs) == ["shared"]


@pytest.mark.parametrize("change", [
    lambda widget: setattr(widget.questions, "value", " \n"),
    lambda widget: only(widget, None),
    lambda widget: setattr(widget.questions, "value", "why? " * 5000),
    lambda widget: setattr(type(widget.model), "read", lambda *_, **__: 1 / 0),  # nobody foresaw it
])  # fmt: skip
def test_what_is_wrong_with_a_race_is_said_in_it(racing, change, monkeypatch):
    monkeypatch.setattr(type(racing.model), "read", type(racing.model).read)  # put back at the end
    racing._tokens = None
    racing.picture.value, racing.answers.value, racing.runs = "the last picture", "the last answers", {"naive": 1}
    change(racing)
    racing.run_button.click()
    assert racing.wait(60)
    assert ALERT in racing.message.value
    assert (racing.picture.value, racing.answers.value) == ("the last picture", "the last answers")
    assert racing.runs
    assert racing.run_button.button_style == "primary"


def uploaded(name, data):
    about = {"name": name, "type": "", "size": len(data), "last_modified": datetime.now(UTC)}
    return (about | {"content": memoryview(data)},)


LIGHTHOUSE = "The keeper is Ada Lind.\nA visit costs 12 euros."


def test_a_race_over_a_file_of_ones_own(speaker, tmp_path):
    (tmp_path / "my.md").write_text(LIGHTHOUSE)
    widget = race_widget(speaker, document=tmp_path / "my.md")
    widget.max_tokens.value = 2
    only(widget, "shared")
    widget.run_button.click()
    assert widget.wait(60)
    assert len(widget.runs["shared"].tokens) == len(speaker.read(LIGHTHOUSE))
    assert len(widget.runs["shared"].answers) == 3
    assert ALERT in race_widget(speaker, document="nowhere.txt").message.value


def test_a_race_takes_a_pasted_text_and_an_upload(speaker):
    widget = race_widget(speaker, depth=300)
    dossier, questions = len(speaker.read(lab.load_document("dossier"))), widget.questions.value
    assert (widget.depth.value, widget.depth.options[-1][1]) == (300, dossier)

    widget.document.source.value = "your own text"
    assert widget.document.children[1] is widget.document.pasted
    assert widget.questions.value != questions  # the dossier's
    widget.run_button.click()
    assert widget.wait(60)
    assert ALERT in widget.message.value  # nothing is pasted yet
    widget.document.pasted.value = LIGHTHOUSE
    assert race_widget(document=LIGHTHOUSE).document.text() == LIGHTHOUSE  # or it is given at once
    assert widget.depth.value == len(speaker.read(LIGHTHOUSE))

    widget.document.source.value = "upload"
    assert widget.document.children[1] is widget.document.upload
    widget.document.upload.value = uploaded("a.pdf", b"%PDF-")
    assert ALERT in widget.message.value
    widget.document.upload.value = uploaded("a.md", LIGHTHOUSE.encode() * 17)
    assert [value for _, value in widget.depth.options] == [128, 256, len(speaker.read(LIGHTHOUSE * 17))]

    widget.questions.value = "Mine?"
    widget.document.source.value = "dossier"
    assert (widget.questions.value, widget.depth.options[-1][1]) == ("Mine?", dossier)
    assert widget.depth.value == 300  # as before the shorter documents
