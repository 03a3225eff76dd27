"""The web pages of figures/ as readers meet them: phone, tablet and desk, light and dark, on paper, by keyboard.

Screenshots are kept in artifacts/browser.
"""

import pytest
from browsing import ARTIFACTS
from conftest import ROOT

WIDTHS = (390, 800, 1400)

pytestmark = [pytest.mark.browser, pytest.mark.real]


def looked_at(page, name):
    """The page in each width and scheme: nothing is cut off, and axe finds nothing serious."""
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, scheme, width)
            page.screenshot(path=ARTIFACTS / f"{name}.{scheme}.{width}.png", full_page=True)
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == [], (name, scheme)


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
    page.keyboard.press("Enter")
    assert page.evaluate("Math.abs(document.querySelector(':target').getBoundingClientRect().top) < 100")
    looked_at(page, "figures")
    assert not printed(page, "figures")
