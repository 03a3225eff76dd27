"""The explorers: what they show is the package's own number, and it follows every control."""

import base64
import html
import re
import shutil
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from conftest import load_shape

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_studies import latency_explorer, race_widget, sizing_explorer, snapshot_inspector
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.kv_sizing.memory import agents_by_budget, agents_bytes

explorer_module = sys.modules["swarmkv_studies.common.widgets.explorer"]
measurements_module = sys.modules["swarmkv_studies.common.measurements"]
ALERT = "role='alert'"


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
    assert "200.8 MB" in explorer.message.value


def test_a_figure_says_in_words_what_it_shows(explorer):
    """In notebooks, which give a plain image no alt text; and with its settings, when the controls have moved on."""
    kept = explorer.figure()
    explorer.model.value = "gemma-3-27b"
    assert "Model: qwen2.5-7b; Document, tokens: 3,501; Agents: 8" in kept.get_supxlabel()
    bundle, metadata = kept._repr_mimebundle_()
    alt = metadata["image/png"]["alt"]
    assert "qwen2.5-7b" in alt
    assert f'alt="{html.escape(alt)}"' in bundle["text/html"]


@pytest.mark.parametrize(("widget", "control", "value"), [
    ("explorer", "model", "gemma-3-27b"), ("explorer", "tokens", 32_768), ("explorer", "agents", 33),
    ("explorer", "key_type", "q8_0"), ("explorer", "value_type", "q4_0"), ("explorer", "budget", 24),
    ("latency", "metric", "end_to_end_ms"), ("latency", "against", "n_agents"), ("latency", "depth", 1024),
    ("latency", "agents", 16), ("latency", "log_axes", False),
    ("inspector", "layer", 1), ("inspector", "head", 1), ("inspector", "first", 1),
])  # fmt: skip
def test_every_control_changes_the_picture(request, widget, control, value):
    widget = request.getfixturevalue(widget)
    before = widget.picture.value
    getattr(widget, control).value = value
    assert widget.picture.value != before
    assert 'src="data:image/png;base64,iVBOR' in widget.picture.value
    assert ALERT not in widget.message.value


def test_every_model_can_be_shown(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "redraw", lambda: None)  # the numbers alone: pictures take a while
    for name in catalogue().index:
        explorer.model.value = name
        assert f"{explorer.numbers['shared_fit']}" in explorer.words(), name


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """A reader's measurements, in a folder of the test's."""
    for module in (explorer_module, measurements_module):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return tmp_path


@pytest.fixture
def latency(runs_folder):
    return latency_explorer()


def test_its_predictions_are_the_cost_models(latency):
    model = CostModel.fit(measurements("reference").grid)
    row = model.predict([3501], [4], ["shared"]).iloc[0]
    for ms in (row.last_ttft_ms, row.end_to_end_ms, row.activation_ms):
        assert f">{ms:,.1f}<" in latency.message.value or f">{ms:,.0f}<" in latency.message.value
    data = latency.data()
    assert set(data.kind) == {"measured", "predicted"}
    assert set(data[data.kind == "measured"].n_agents) == {4}


def test_a_strategy_that_is_not_chosen_is_not_drawn(latency):
    latency.shown["naive"].value = False
    assert "naive" not in set(latency.data().strategy)
    for box in latency.shown.values():
        box.value = False
    assert ALERT in latency.message.value
    latency.shown["shared"].value = True
    assert "alert" not in latency.message.value


def test_the_articles_numbers(latency):
    latency.source.value = "published"
    assert "10,275" in latency.message.value
    assert all(control.disabled for control in (latency.metric, latency.against, latency.depth, latency.agents))
    assert [name for name, box in latency.shown.items() if not box.disabled] == ["naive", "swarmkv"]
    assert list(latency.data().end_to_end_ms) == [10_275, 5_272]
    assert set(latency.data().kind) == {"published"}
    latency.shown["naive"].value = latency.shown["swarmkv"].value = False
    assert ALERT in latency.message.value
    latency.source.value = "reference"
    assert not any(control.disabled for control in latency.controls)


def test_numbers_of_ones_own_are_offered_once_there_are_some(latency, runs_folder):
    assert "mine" not in latency.source.options
    with pytest.raises(lab.SwarmKVError):
        latency_explorer(source="mine")
    (runs_folder / "quick").mkdir()
    grid = measurements("reference").grid
    grid[grid.n_agents < 4].to_csv(runs_folder / "quick" / "grid.csv", index=False)
    mine = latency_explorer(source="mine", agents=2).data()
    assert set(mine[mine.kind == "measured"].n_agents) == {2}


def test_export_keeps_figure_and_data(latency, runs_folder):
    latency.export_button.click()
    latency.export_button.click()
    names = sorted(path.name for path in (runs_folder / "exports").iterdir())
    assert names == [f"latency-{i}.{ending}" for i in (1, 2) for ending in ("csv", "png", "svg")]
    kept = pd.read_csv(runs_folder / "exports/latency-1.csv")
    pd.testing.assert_frame_equal(kept, latency.data(), check_dtype=False, rtol=1e-12)
    assert "latency-2.png" in latency.exported.value
    shutil.rmtree(runs_folder / "exports")
    (runs_folder / "exports").write_text("a file in the folder's place")
    latency.export_button.click()
    assert ALERT in latency.exported.value


@pytest.fixture
def inspector(twin, document, runs_folder):
    with twin.context(512) as ctx:
        ctx.decode(document)
        snapshot = lab.KVSnapshot.capture(ctx, document)
    return snapshot_inspector(twin, snapshot)


def test_the_inspector_shows_the_snapshots_own_numbers(inspector, twin):
    inspector.layer.value, inspector.head.value, inspector.first.value = 1, 1, 250
    data = inspector.data()
    assert list(data.position) == list(range(250, 300))
    keys = inspector.snapshot.state().keys(1)[250:, 1]
    np.testing.assert_array_equal(data.filter(like="k"), keys)
    assert "tokens 250 to 299" in inspector.picture.value
    assert f"{inspector.snapshot.nbytes:,} bytes" in inspector.message.value


def test_the_inspector_of_a_windowed_layer_begins_where_the_layer_does(document, runs_folder, tmp_path):
    with load_shape("sliding window", tmp_path) as model, model.context(512) as ctx:
        ctx.decode(document)
        widget = snapshot_inspector(model, lab.KVSnapshot.capture(ctx, document))
    assert list(widget.data().position) == list(range(300 - 32, 300))  # layer 0 slides
    widget.layer.value, widget.first.value = 2, 290
    assert list(widget.data().position) == list(range(290, 300))
    widget.layer.value = 3
    assert list(widget.data().position) == list(range(290, 300))


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


@pytest.fixture
def racing(speaker, runs_folder):
    widget = race_widget(speaker, depth=128)
    widget.max_tokens.value = 4
    widget.questions.value = "\n".join(widget.questions.value.splitlines()[:2])
    yield widget
    widget.stop()
    assert widget.wait(60)


def only(widget, name):
    for other, box in widget.shown.items():
        box.value = other == name


def test_a_race_shows_timelines_and_answers(racing):
    racing.run_button.click()
    assert racing.run_button.disabled
    assert racing.wait(120)
    assert list(racing.runs) == ["naive", "swarmkv", "shared", "batched"]
    assert racing.progress.value == 1
    assert "data:image/png" in racing.picture.value
    for text in racing.runs["naive"].answers.values():
        assert html.escape(text) in racing.answers.value
    assert (racing.run_button.disabled, racing.stop_button.disabled) == (False, True)
    assert set(racing.data().strategy) == set(racing.runs)
    assert len(racing.export()) == 3


def test_a_race_is_stopped_within_a_batch_and_can_run_again(racing):
    racing.depth.value = 2048
    racing.run_button.click()
    wait_for(lambda: "naive" in racing.message.value)
    racing.stop_button.click()
    assert racing.wait(60)
    assert (racing.runs, racing.run_button.disabled) == ({}, False)
    assert set(racing.data().phase) <= {"context", "prefill"}  # what was under way is still shown
    racing.depth.value = 128
    only(racing, "shared")
    racing.run_button.click()
    assert racing.wait(120)
    assert list(racing.runs) == ["shared"]


@pytest.mark.parametrize(
    "change",
    [
        lambda widget: setattr(widget.questions, "value", " \n"),
        lambda widget: only(widget, None),
        lambda widget: setattr(widget.questions, "value", "why? " * 5000),
        lambda widget: setattr(type(widget.model), "tokenize", lambda *_, **__: 1 / 0),  # nobody foresaw it
    ],
)
def test_what_is_wrong_with_a_race_is_said_in_it(racing, change, monkeypatch):
    monkeypatch.setattr(type(racing.model), "tokenize", type(racing.model).tokenize)  # put back at the end
    racing._tokens = None
    racing.picture.value, racing.answers.value, racing.runs = "the last picture", "the last answers", {"naive": 1}
    change(racing)
    racing.run_button.click()
    assert racing.wait(60)
    assert ALERT in racing.message.value
    assert (racing.picture.value, racing.answers.value) == ("the last picture", "the last answers")
    assert racing.runs  # and they can be exported
    assert not racing.run_button.disabled


def uploaded(name, data):
    now = datetime.now(UTC)
    return ({"name": name, "type": "", "size": len(data), "content": memoryview(data), "last_modified": now},)


LIGHTHOUSE = "The keeper is Ada Lind.\nA visit costs 12 euros."


def test_a_race_over_a_file_of_ones_own(speaker, runs_folder, tmp_path):
    (tmp_path / "my.md").write_text(LIGHTHOUSE)
    widget = race_widget(speaker, document=tmp_path / "my.md")
    n = len(speaker.read(LIGHTHOUSE))
    assert [value for _, value in widget.depth.options] == [n]
    assert widget.document.source.label == "my.md"
    widget.max_tokens.value = 2
    only(widget, "shared")
    widget.run_button.click()
    assert widget.wait(60)
    assert len(widget.runs["shared"].tokens) == n
    assert len(widget.runs["shared"].answers) == 3
    assert ALERT in race_widget(speaker, document="nowhere.txt").message.value


def test_a_race_takes_a_pasted_text_and_an_upload(speaker, runs_folder):
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
    widget.document.upload.value = uploaded("a.md", LIGHTHOUSE.encode() * 20)
    assert [value for _, value in widget.depth.options] == [128, 256, len(speaker.read(LIGHTHOUSE * 20))]

    widget.questions.value = "Mine?"
    widget.document.source.value = "dossier"
    assert (widget.questions.value, widget.depth.options[-1][1]) == ("Mine?", dossier)


def test_every_control_has_a_label(explorer, latency, inspector):
    for widget in (explorer, latency, inspector, race_widget().document):
        assert all(control.description for control in widget.controls)


def test_an_export_links_to_its_files(explorer, runs_folder):
    paths = explorer.export()
    links = re.findall(r'<a download="([^"]+)" href="data:[^,]*;base64,([^"]+)">', explorer.exported.value)
    assert [(name, base64.b64decode(data)) for name, data in links] == [
        (path.name, path.read_bytes()) for path in paths
    ]
