"""The web pages of figures/ as readers meet them: phone, tablet and desk, light and dark, on paper, by keyboard.

Screenshots are kept in artifacts/browser.
"""

from itertools import product

import pytest
from browsing import ARTIFACTS, violations
from conftest import ROOT

from swarmkv_lab.sizing.catalogue import catalogue, geometry
from swarmkv_lab.sizing.geometry import KV_TYPES
from swarmkv_studies.book.explorer import explorer
from swarmkv_studies.common.costmodel import CostModel
from swarmkv_studies.common.measurements import measurements
from swarmkv_studies.kv_sizing.memory import LAYOUTS, agents_bytes
from swarmkv_studies.many_machines.shipping import Document, Link, break_even_bandwidth, join_bound

DEPTHS, AGENTS = (1, 128, 3501, 5000, 131_072), (1, 2, 7, 64)
LINKS, PREFILLS = (625e3, 125e6), (10.0, 806.9)
WIDTHS = (390, 800, 1400)

pytestmark = [pytest.mark.browser, pytest.mark.real]


def looked_at(page, name):
    """The page in each width and scheme: nothing is cut off, and axe finds nothing serious."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, scheme, width)
            page.screenshot(path=ARTIFACTS / f"{name}.{scheme}.{width}.png", full_page=True)
        assert violations(page) == [], (name, scheme)


def printed(page, name):
    page.emulate_media(media="print", color_scheme="light")
    page.pdf(path=ARTIFACTS / f"{name}.pdf", format="A4")
    shown = page.locator("nav").first.is_visible()
    page.emulate_media(media="screen")
    return shown


def test_the_figures_page(page):
    page.goto((ROOT / "figures/index.html").as_uri())
    page.evaluate("""() => {
        window.shift = 0;
        new PerformanceObserver(list => list.getEntries().forEach(entry => { window.shift += entry.value; }))
            .observe({type: 'layout-shift', buffered: true});
    }""")
    images = page.locator("img")
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=images.nth(i).element_handle())
    assert page.evaluate("window.shift") == 0
    page.evaluate("scrollTo(0, 0)")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("document.activeElement.getAttribute('href')") == "explorer.html"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("Math.abs(document.querySelector(':target').getBoundingClientRect().top) < 100")
    looked_at(page, "figures")
    assert not printed(page, "figures")


def test_the_explorers_page(page, tmp_path):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    file = tmp_path / "explorer.html"
    file.write_text(explorer(measurements("reference"), "README.md"), encoding="utf-8")
    page.goto(file.as_uri())
    _computes_as_python_does(page)
    _follows_the_keyboard(page)
    looked_at(page, "explorer")
    page.set_viewport_size({"width": 1400, "height": 900})
    for setting, value in {"model": "smollm2-135m", "type": "f16", "metric": "ttft"}.items():
        page.select_option(f"#{setting}", value)
    page.select_option("#speed", "0")
    page.fill("#tokens", str(page.evaluate("swarmkv.constants.depths.indexOf(2048)")))
    page.screenshot(path=ARTIFACTS / "explorer.races.png", full_page=True)
    points = page.locator("#shipping-chart .point").count()
    assert points == 3 * measurements("reference").join.bandwidth.nunique()  # it shows what was measured
    page.pdf(path=ARTIFACTS / "explorer.pdf", format="A4")
    assert failed == []
    assert requests == [file.as_uri()]  # it needs nothing but itself


def _computes_as_python_does(page):
    """The page's formulas against those of sizing and analysis: bytes exactly, times to 1e-9."""
    model = CostModel.fit(measurements("reference").grid)
    ask = "([f, cases]) => cases.map(given => swarmkv[f](...given))"
    cases = list(product(model.strategies, DEPTHS, AGENTS))
    for (name, depth, agents), said in zip(cases, page.evaluate(ask, ["predict", cases]), strict=True):
        row = model.predict([depth], [agents], [name]).iloc[0]
        assert said == pytest.approx({"ttft": row.last_ttft_ms, "endToEnd": row.end_to_end_ms}, rel=1e-9)

    shapes = {name: geometry(name) for name in catalogue().index}
    cases = list(product(shapes, DEPTHS, AGENTS, KV_TYPES))
    for given, said in zip(cases, page.evaluate(ask, ["agentsBytes", cases]), strict=True):
        name, depth, agents, kv_type = given
        how = {"n_tokens": depth, "n_agents": agents, "kv_type": kv_type}
        assert said == {layout: agents_bytes(shapes[name], layout=layout, **how) for layout in LAYOUTS}, given

    cases = list(product(shapes, DEPTHS, KV_TYPES, LINKS, PREFILLS))
    for given, said in zip(cases, page.evaluate(ask, ["ship", cases]), strict=True):
        name, depth, kv_type, bandwidth, prefill = given
        document = Document.of(shapes[name], depth, prefill, kv_type)
        load = Link(bandwidth).seconds(document.nbytes)
        assert said.pop("bytes") == document.nbytes == shapes[name].snapshot_bytes(depth, kv_type), given
        times = {"compute": document.prefill_s, "load": load, "join": join_bound(document.prefill_s, load)}
        times["breakEven"] = break_even_bandwidth(shapes[name], depth, prefill, kv_type)
        assert said == pytest.approx(times, rel=1e-9), given


def _follows_the_keyboard(page):
    """From control to control by Tab; each key changes what it should, and says so to who cannot see it."""
    page.evaluate("scrollTo(0, 0)")
    panels = {"tokens": "latency", "agents": "memory", "model": "memory", "type": "memory", "mbit": "shipping",
              "speed": "shipping"}  # fmt: skip
    page.locator("header a").last.focus()
    for control, panel in panels.items():
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == control
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.locator(f"#{control}").evaluate("e => e.labels.length") == 1
        before = page.locator(f"#{panel}-numbers").inner_text()
        page.keyboard.press("ArrowDown" if control in ("model", "speed") else "ArrowUp")
        assert page.locator(f"#{panel}-numbers").inner_text() != before, control
    assert page.locator("#tokens").get_attribute("aria-valuetext") == "4,096 tokens"
    assert page.locator("#tokens-value").inner_text() == "4,096 tokens"
    page.keyboard.press("Tab")
    before = page.locator("#latency-chart").inner_html()
    page.keyboard.press("ArrowDown")
    assert page.locator("#latency-chart").inner_html() != before
    for panel in ("latency", "memory", "shipping"):
        said = page.locator(f"section[aria-labelledby={panel}]").inner_text()
        assert "(predicted)" in said or "predicted" in said
        assert "NaN" not in said
        assert "undefined" not in said
