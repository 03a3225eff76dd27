"""The explorers: what they show is the package's own number, and it follows every control."""

import pytest

from swarmkv_lab.catalogue import catalogue, geometry
from swarmkv_lab.memory import agents_bytes
from swarmkv_lab.widgets import sizing_explorer


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
        assert agents_bytes(shape, 3501, fit, layout=layout) <= 8 * 10**9
        assert fit == 255 or agents_bytes(shape, 3501, fit + 1, layout=layout) > 8 * 10**9
    for number in (numbers["bytes_per_token"], numbers["snapshot_bytes"], numbers["shared_bytes"]):
        assert f"{number:,}" in explorer.table.value


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
    before = explorer.table.value, bytes(explorer.picture.value)
    getattr(explorer, control).value = value
    assert explorer.table.value != before[0]
    assert bytes(explorer.picture.value) != before[1]
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")


def test_every_model_can_be_shown(explorer):
    for name in catalogue().index:
        explorer.model.value = name
        assert "alert" not in explorer.table.value, name


def test_every_control_has_a_label(explorer):
    assert all(control.description for control in explorer.controls)
