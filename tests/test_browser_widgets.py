"""The explorers in a real JupyterLab: keys are theirs, all has a name, nothing is cut off or scrolls sideways."""

import httpx
import nbformat
import pytest
from browsing import ARTIFACTS, open_and_run, violations

CELLS = [
    "%matplotlib inline\nimport swarmkv_lab as lab\nfrom swarmkv_lab import figures, widgets",
    "widgets.sizing_explorer(budget_gb=24)",
    "widgets.latency_explorer()",
    "widgets.race()",
    "figures.latency_against_depth(studies.measurements('reference').grid)",
    "widgets.sizing_explorer().figure()",
]
CONTROLS = {
    "dropdown": "select",
    "slider": ".widget-slider:has-text('Agents') .noUi-handle",
    "selection slider": ".widget-slider:has-text('Document, tokens') .noUi-handle",
    "checkbox": "input[type=checkbox]",
    "text area": "textarea",
    "button": "button:has-text('Export')",
}
STATE = """control => [
    [...document.querySelectorAll('.jp-Notebook .jp-Cell')].map(cell => cell.className.match(/jp-\\w+Cell/)[0]),
    document.activeElement === control,
]"""
VALUE = "e => e.type === 'checkbox' ? e.checked : e.value ?? e.ariaValueNow"

pytestmark = [pytest.mark.browser, pytest.mark.real]


@pytest.fixture(scope="module")
def explorers(browser, lab):
    """A page with every explorer that needs no model, all cells run."""
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = {"type": "notebook", "content": nbformat.v4.new_notebook(cells=cells, metadata=kernel)}
    assert httpx.put(lab("api/contents/notebooks/explorers.ipynb"), json=notebook).is_success
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(60_000)
    open_and_run(page, lab, "explorers")
    yield page
    page.close()


@pytest.fixture
def described(explorers):
    """The page has been told: what tells it is loaded on its own."""
    explorers.wait_for_function("document.querySelectorAll('.noUi-handle[aria-label]').length === 7")


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize("kind", CONTROLS)
def test_keys_are_the_controls_own(explorers, kind):
    control = explorers.locator(f".swarmkv-explorer {CONTROLS[kind]}").first
    control.focus()
    before = control.evaluate(STATE)
    values = [control.evaluate(VALUE)]
    for keys in ("ArrowDown", *"lla", *"mix", *"dd", *"abx", "ArrowUp", "ArrowUp"):
        explorers.keyboard.press(keys)
        values.append(control.evaluate(VALUE))
    assert control.evaluate(STATE) == before
    assert before[1]
    if kind == "checkbox":
        explorers.keyboard.press("Space")
        assert control.evaluate(VALUE) is not values[0]
        explorers.keyboard.press("Space")
    elif kind == "button":
        explorers.keyboard.press("Space")
        explorers.get_by_text("wrote ").first.wait_for()
    else:
        assert len(set(values)) > 1, "the control did not react"
    if kind == "text area":
        assert "llamixddabx" in control.input_value()


@pytest.mark.usefixtures("described")
def test_sliders_say_their_names_and_what_they_show(explorers):
    handle = explorers.locator(".widget-slider:has-text('Document, tokens') .noUi-handle").first
    handle.focus()
    explorers.keyboard.press("ArrowRight")
    explorers.wait_for_timeout(300)
    told = explorers.locator(".noUi-handle").evaluate_all(
        """handles => handles.map(handle => {
            const slider = handle.closest('.widget-slider'), text = part => slider.querySelector(part).textContent;
            return [[handle.ariaLabel, handle.ariaValueText], [text('.widget-label'), text('.widget-readout')]];
        })"""
    )
    assert len(told) == 7
    for said, shown in told:
        assert said == shown
        assert all(said)
    assert any("," in said[1] for said, _ in told)  # "4,096", not the index


def test_pictures_are_described(explorers):
    alts = explorers.locator(".jp-OutputArea img").evaluate_all("images => images.map(image => image.alt)")
    assert len(alts) == 4  # two explorers that draw at once, two figures
    assert all(len(alt) > 40 for alt in alts)
    assert any("ms against document, tokens" in alt for alt in alts)


@pytest.mark.usefixtures("described")
def test_axe_finds_nothing_serious(explorers):
    assert violations(explorers, ".jp-OutputArea") == []


@pytest.mark.parametrize("width", [1100, 800])
def test_nothing_is_cut_off_or_scrolls_sideways(explorers, width):
    explorers.set_viewport_size({"width": width, "height": 3600})
    explorers.wait_for_timeout(500)
    explorers.screenshot(path=ARTIFACTS / f"explorers.{width}.png")
    cut = explorers.locator(".swarmkv-explorer, .swarmkv-explorer *:not(.widget-readout)").evaluate_all(
        """nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth
            && getComputedStyle(node).overflowX !== 'visible').map(node => [node.className, node.innerText])"""
    )
    explorers.set_viewport_size({"width": 1100, "height": 1000})
    assert cut == []


def test_a_page_that_is_opened_again_has_them_too(explorers, lab):
    explorers.keyboard.press("Escape")
    explorers.get_by_role("menuitem", name="File", exact=True).click()
    explorers.get_by_text("Save Notebook", exact=True).click()
    explorers.reload()
    hooked = ".swarmkv-explorer .noUi-handle[aria-label='Agents']"
    explorers.locator(hooked).first.wait_for()
    explorers.goto(lab("voila/render/notebooks/explorers.ipynb"))  # and as a plain page
    explorers.locator(hooked).first.wait_for()
