"""Page: what an explorer tells the page around it, so that its keys are its own and its sliders have names."""

from pathlib import Path

import anywidget


class Page(anywidget.AnyWidget):
    """Nothing to see: a child of the explorer (class ``swarmkv-explorer``) that it describes to the page.

    In JupyterLab keys are shortcuts wherever nothing says otherwise: a letter in a dropdown would change the notebook.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = ".swarmkv-explorer .widget-html-content { min-width: 0 }"  # a wide table scrolls, not all around it
