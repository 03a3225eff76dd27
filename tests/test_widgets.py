"""The explorers: what they show is the package's own number, and it follows every control."""

import base64
import html
import re
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from conftest import load_shape

import swarmkv_lab as lab
from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_studies import latency_explorer, sizing_explorer, snapshot_inspector
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.kv_sizing.memory import agents_by_budget, agents_bytes
from swarmkv_studies.tour.race import race_widget as race

explorer_module = sys.modules["swarmkv_studies.common.widgets.explorer"]
measurements_module = sys.modules["swarmkv_studies.common.measurements"]
race_module = sys.modules["swarmkv_studies.tour.race"]


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
    for text in ("57,344 bytes", "200.8 MB", "323.0 MB"):
        assert text in explorer.message.value


def test_figure_and_table_say_the_same(explorer):
    explorer.budget.value = 24
    fit = explorer.numbers["copied_fit"]
    assert fit > explorer.agents.max  # the axis ends before
    assert f"{fit} fit" in explorer.message.value
    assert f"{fit} agents fit with copies, 255+ if shared" in explorer.picture.value


def test_a_picture_says_which_settings_it_shows(explorer):
    kept = explorer.figure()
    explorer.model.value, explorer.key_type.value = "gemma-3-27b", "q8_0"
    assert "Model: qwen2.5-7b; Document, tokens: 3,501; Agents: 8; Key type: f16" in kept.get_supxlabel()
    assert "Memory: 8 GB" in kept.get_supxlabel()


def test_notebooks_show_a_figure_with_its_words(explorer):
    bundle, metadata = explorer.figure()._repr_mimebundle_()
    alt = metadata["image/png"]["alt"]
    assert "agents fit with copies" in alt
    assert "GB of weights and KV (predicted) against agents" in alt
    assert f'alt="{html.escape(alt)}"' in bundle["text/html"]


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("model", "gemma-3-27b"),
        ("tokens", 32_768),
        ("agents", 33),
        ("key_type", "q8_0"),
        ("value_type", "q4_0"),
        ("budget", 24),
    ],
)
def test_every_control_changes_table_and_picture(explorer, control, value):
    before = explorer.message.value, explorer.picture.value
    getattr(explorer, control).value = value
    assert explorer.message.value != before[0]
    assert explorer.picture.value != before[1]
    assert 'src="data:image/png;base64,iVBOR' in explorer.picture.value
    assert explorer.model.value in explorer.picture.value.split('alt="')[1]


def test_every_model_can_be_shown(explorer):
    for name in catalogue().index:
        explorer.model.value = name
        assert "alert" not in explorer.message.value, name


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """A reader's measurements, in a folder of the test's."""
    for module in (explorer_module, measurements_module):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return tmp_path


@pytest.fixture
def latency(runs_folder):
    return latency_explorer()


@pytest.mark.parametrize(
    ("control", "value"),
    [("metric", "end_to_end_ms"), ("against", "n_agents"), ("depth", 1024), ("agents", 16), ("log_axes", False)],
)
def test_every_control_of_the_latency_explorer_changes_the_picture(latency, control, value):
    before = latency.picture.value
    getattr(latency, control).value = value
    assert latency.picture.value != before
    assert "alert" not in latency.message.value


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
    assert "no strategy is chosen" in latency.message.value
    latency.shown["shared"].value = True
    assert "alert" not in latency.message.value


def test_the_articles_numbers(latency):
    latency.source.value = "published"
    assert latency.metric.value == "end_to_end_ms"
    assert "10,275" in latency.message.value
    assert "the other controls are off" in latency.message.value
    assert all(control.disabled for control in (latency.metric, latency.against, latency.depth, latency.agents))
    assert [name for name, box in latency.shown.items() if not box.disabled] == ["naive", "swarmkv"]
    assert "2 agents, 3,501 tokens (published)" in latency.picture.value
    assert list(latency.data().end_to_end_ms) == [10_275, 5_272]
    assert set(latency.data().kind) == {"published"}
    latency.shown["naive"].value = latency.shown["swarmkv"].value = False
    assert "tick one of them" in latency.message.value
    latency.source.value = "reference"
    assert not any(control.disabled for control in latency.controls)


def test_numbers_of_ones_own_are_offered_once_there_are_some(latency, runs_folder):
    assert "mine" not in latency.source.options
    assert "'mine' is not offered yet" in latency.message.value
    assert "run make reproduce" in latency.message.value
    with pytest.raises(lab.SwarmKVError, match="run make reproduce"):
        latency_explorer(source="mine")
    grid = measurements("reference").grid
    (runs_folder / "quick").mkdir()
    grid.assign(end_to_end_ms=grid.end_to_end_ms * 2).to_csv(runs_folder / "quick" / "grid.csv", index=False)
    mine = latency_explorer(source="mine", agents=2)
    assert "not offered" not in mine.message.value
    measured = mine.data().query("kind == 'measured' and n_agents == 2")
    assert measured.end_to_end_ms.max() == pytest.approx(2 * grid[grid.n_agents == 2].end_to_end_ms.max())


def test_export_keeps_figure_and_data(latency, runs_folder):
    latency.export_button.click()
    latency.export_button.click()
    names = sorted(path.name for path in (runs_folder / "exports").iterdir())
    assert names == [f"latency-{i}.{ending}" for i in (1, 2) for ending in ("csv", "png", "svg")]
    pd.testing.assert_frame_equal(
        pd.read_csv(runs_folder / "exports/latency-1.csv"), latency.data(), check_dtype=False, rtol=1e-12
    )
    assert "latency-2.png" in latency.exported.value


def test_an_export_that_cannot_be_written_is_said(latency, runs_folder):
    (runs_folder / "exports").write_text("a file in the folder's place")
    latency.export_button.click()
    assert "alert" in latency.exported.value


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


def test_an_inspector_where_values_are_read_out_of_the_keys(document, runs_folder, tmp_path):
    with load_shape("latent attention", tmp_path) as model, model.context(512) as ctx:
        ctx.decode(document)
        widget = snapshot_inspector(model, lab.KVSnapshot.capture(ctx, document))
    assert "keys only" in widget.message.value


@pytest.mark.parametrize("control", ["layer", "head", "first"])
def test_every_slider_of_the_inspector_changes_the_picture(inspector, control):
    before = inspector.picture.value
    getattr(inspector, control).value = 1
    assert inspector.picture.value != before


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


@pytest.fixture
def racing(real, runs_folder):
    widget = race(real, depth=128)
    widget.max_tokens.value = 4
    widget.questions.value = "\n".join(widget.questions.value.splitlines()[:2])
    yield widget
    widget.stop()
    assert widget.wait(60)


@pytest.mark.real
def test_a_race_shows_timelines_and_answers(racing, real):
    racing.run_button.click()
    assert racing.run_button.disabled
    assert racing.wait(120)
    assert list(racing.runs) == ["naive", "swarmkv", "shared", "batched"]
    assert "finished" in racing.message.value
    assert racing.progress.value == 1
    assert "data:image/png" in racing.picture.value
    for text in racing.runs["naive"].answers.values():
        assert html.escape(text) in racing.answers.value
    assert racing.answers.value.count("the same tokens") >= 3
    assert (racing.run_button.disabled, racing.stop_button.disabled) == (False, True)
    assert set(racing.data().strategy) == set(racing.runs)
    assert len(racing.export()) == 3


@pytest.mark.real
def test_a_race_is_stopped_within_a_batch_and_can_run_again(racing):
    racing.depth.value = 2048
    racing.run_button.click()
    wait_for(lambda: "naive is running" in racing.message.value)
    racing.stop_button.click()
    assert racing.wait(60)
    assert "stopped; 0 finished" in racing.message.value
    assert not racing.run_button.disabled
    assert set(racing.data().phase) <= {"context", "prefill"}  # what was under way is still shown, and exported
    assert len(racing.export()) == 3
    racing.depth.value = 128
    for name, box in racing.shown.items():
        box.value = name == "shared"
    racing.run_button.click()
    assert racing.wait(120)
    assert "finished" in racing.message.value
    assert "shared" in racing.runs


@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: setattr(r.questions, "value", " \n"), "write at least one"),
        (lambda r: [setattr(box, "value", False) for box in r.shown.values()], "no strategy is chosen: tick one"),
        (lambda r: (setattr(r.depth, "value", 7000), setattr(r.questions, "value", "why? " * 900)), "was trained for"),
        (lambda r: setattr(r.questions, "value", "why? " * 5000), "shorten the question"),
    ],
)
def test_what_is_wrong_with_a_race_is_said_in_it(racing, change, message):
    racing.picture.value, racing.answers.value, racing.runs = "the last picture", "the last answers", {"naive": 1}
    change(racing)
    racing.run_button.click()
    assert racing.wait(60)
    assert racing.picture.value == "the last picture"
    assert racing.answers.value == "the last answers"
    assert racing.runs  # and they can be exported
    assert "role='alert'" in racing.message.value
    assert message in racing.message.value
    assert not racing.run_button.disabled


@pytest.mark.real
def test_a_race_says_how_far_it_is(racing):
    racing.depth.value = 2048
    said = []
    racing.message.observe(lambda change: said.append((change.new, racing.progress.value)), names="value")
    for name, box in racing.shown.items():
        box.value = name == "naive"
    racing.run_button.click()
    wait_for(lambda: "512 of 4,096" in str(said) or "1,024 of 4,096" in str(said))
    racing.stop_button.click()
    text, progress = said[-1]
    assert "naive is running: 0 of 4,096 tokens prefilled, 0 of at most 8 answered" in str(said)
    assert "s left" in text
    assert 0 < progress < 1


def uploaded(name, data):
    now = datetime.now(UTC)
    return ({"name": name, "type": "", "size": len(data), "content": memoryview(data), "last_modified": now},)


LIGHTHOUSE = "The keeper is Ada Lind.\nA visit costs 12 euros."


@pytest.mark.real
def test_a_race_over_a_file_of_ones_own(real, runs_folder, tmp_path):
    (tmp_path / "my.html").write_text(f"<p>{LIGHTHOUSE}</p>")
    widget = race(real, document=tmp_path / "my.html")
    n = len(real.tokenize(lab.load_document(tmp_path / "my.html")))
    assert widget.depth.options == ((f"all {n} tokens", n),)
    assert f"my.html has {n} tokens, so the depth is all of it" in widget.message.value
    assert widget.document.source.label == "my.html"
    assert "What is this text about?" in widget.questions.value
    widget.max_tokens.value = 2
    for name, box in widget.shown.items():
        box.value = name == "shared"
    widget.run_button.click()
    assert widget.wait(60)
    assert "finished" in widget.message.value
    assert len(widget.runs["shared"].tokens) == n
    assert len(widget.runs["shared"].answers) == 3


@pytest.mark.real
def test_a_race_takes_a_pasted_text_and_an_upload(real, runs_folder):
    widget = race(real, depth=300)
    dossier, questions = len(real.tokenize(lab.load_document("dossier"))), widget.questions.value
    assert widget.depth.label == "300"
    assert widget.depth.options[-1] == (f"all {dossier:,} tokens", dossier)
    assert {widget.document.pasted, widget.document.upload} & {*widget.document.children} == set()

    widget.document.source.value = "your own text"
    assert widget.document.children[1] is widget.document.pasted
    assert (widget.message.value, widget.questions.value == questions) == ("", False)
    widget.run_button.click()
    assert widget.wait(60)
    assert "there is no document yet: paste a text" in widget.message.value
    widget.document.pasted.value = LIGHTHOUSE
    assert "your own text has" in widget.message.value
    assert widget.depth.value == len(real.tokenize(LIGHTHOUSE))

    widget.document.source.value = "upload"
    assert widget.document.children[1] is widget.document.upload
    widget.document.upload.value = uploaded("a.pdf", b"%PDF-")
    assert "role='alert'" in widget.message.value
    assert "a.pdf is broken, or no PDF at all" in widget.message.value
    assert widget.depth.options[-1][0] == "all tokens"
    widget.document.upload.value = uploaded("a.md", LIGHTHOUSE.encode() * 20)
    n = len(real.tokenize(LIGHTHOUSE * 20))
    assert f"a.md has {n} tokens</p>" in widget.message.value
    assert [value for _, value in widget.depth.options] == [128, 256, n]
    assert widget.depth.value == 128  # of the last document it was all, and that is nobody's wish for this one

    widget.questions.value = "Mine?"
    widget.document.source.value = "dossier"
    assert (widget.questions.value, widget.depth.options[-1][1]) == ("Mine?", dossier)


def test_a_race_without_a_model_is_given_a_text(runs_folder):
    widget = race(document=LIGHTHOUSE)
    assert widget.document.text() == LIGHTHOUSE
    assert widget.document.source.label == "your own text"
    assert widget.depth.options[-1][0] == "all tokens"
    assert race(document="x" * 300).document.text() == "x" * 300


@pytest.mark.real
def test_a_race_over_a_file_that_is_not_there_says_so(real, runs_folder):
    assert "is neither a file nor one of article, dossier" in race(real, document="my.txt").message.value


def test_a_failure_nobody_foresaw_is_said_and_gives_the_buttons_back(twin, runs_folder, monkeypatch):
    widget = race(twin)
    monkeypatch.setattr(race_module, "plan", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(type(twin), "tokenize", lambda *_, **__: [1])
    widget.run_button.click()
    assert widget.wait(10)
    assert "ZeroDivisionError" in widget.message.value
    assert not widget.run_button.disabled


def test_every_control_has_a_label(explorer, latency, inspector):
    for widget in (explorer, latency, inspector, race().document):
        assert all(control.description for control in widget.controls)


def test_an_export_links_to_its_files(explorer, runs_folder):
    paths = explorer.export()
    links = re.findall(r'<a download="([^"]+)" href="data:[^,]*;base64,([^"]+)">', explorer.exported.value)
    assert [(name, base64.b64decode(data)) for name, data in links] == [
        (path.name, path.read_bytes()) for path in paths
    ]
