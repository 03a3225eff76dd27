"""The project's notebooks: execute them, and clean them for publication."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from swarmkv_lab.files import ROOT
from swarmkv_studies.common.profiles import PROFILE_VARIABLE


def execute(path: Path, profile_name: str) -> nbformat.NotebookNode:
    """Execute a notebook in its folder with a profile, and return it cleaned for publication."""
    notebook = nbformat.read(path, as_version=4)
    env = os.environ | {PROFILE_VARIABLE: profile_name}
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=ERROR"],  # its warnings are about the kernel's transport
    )
    client.execute(env=env)
    return clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what is useless on the web: widget state, progress bars, and paths of this machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_without_paths(output) for output in cell.outputs if _is_worth_keeping(output)]
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/png" in data:
                    data.pop("text/html", None)  # the same picture again
    return notebook


def _is_worth_keeping(output: Any) -> bool:
    is_progress = output.output_type == "stream" and output.name == "stderr"
    is_widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not (is_progress or is_widget)


def _without_paths(output: Any) -> Any:
    text = json.dumps(output)
    for folder in (str(ROOT), str(Path.home())):
        text = text.replace(json.dumps(folder)[1:-1], "~")
    return nbformat.from_dict(json.loads(text))
