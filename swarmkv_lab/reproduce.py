"""reproduce: the article's experiment on this machine, its figures, and every notebook executed."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbclient import NotebookClient
from tqdm.auto import tqdm

from swarmkv_lab import article, figures
from swarmkv_lab.bench import bench, table
from swarmkv_lab.documents import load_document
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.models import load_model
from swarmkv_lab.profiles import PROFILE_VARIABLE, profile
from swarmkv_lab.provenance import caption
from swarmkv_lab.resources import ROOT
from swarmkv_lab.strategies import STRATEGIES


def reproduce(profile_name: str | None = None, *, reference: bool = False) -> None:
    """Measure, draw, execute the notebooks, and end with the article's table beside ours.

    Data and executed notebooks go to data/runs/PROFILE, figures to figures/. With ``reference`` (for maintainers)
    data/reference and notebooks/ themselves are replaced.
    """
    chosen = profile(profile_name)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise SwarmKVError("there is no notebooks folder beside swarmkv_lab: run this in a checkout of the project")
    data = ROOT / "data" / ("reference" if reference else f"runs/{chosen.name}")
    data.mkdir(parents=True, exist_ok=True)
    (ROOT / "figures").mkdir(exist_ok=True)

    with load_model() as model:
        tokens = model.tokenize(load_document("dossier"))
        report, runs = bench(
            model,
            tokens,
            depth=chosen.depth,
            n_agents=2,
            strategies=list(STRATEGIES),
            repeats=chosen.repeats,
            max_tokens=chosen.max_tokens,
        )
    (data / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    flat = pd.DataFrame(report["runs"]).drop(columns="agents")
    flat.to_csv(data / "bench.csv", index=False)
    last = {run.strategy: run.timeline for run in runs}  # the last repeat of each
    small_print = caption(report["environment"])
    drawn = {
        "timeline": figures.timeline({name: last[name] for name in ("naive", "swarmkv")}, small_print),
        "strategies": figures.strategies(report["summary"], small_print),
        "broadcast": figures.broadcast(),
    }
    for name, figure in drawn.items():
        figures.save(figure, ROOT / "figures", name)

    out = ROOT / "notebooks" if reference else data / "notebooks"
    out.mkdir(exist_ok=True)
    for path in tqdm(notebooks, desc="notebooks", unit="notebook"):
        nbformat.write(execute(path, chosen.name), out / path.name)

    print(table(report))
    print(
        f"\nThe article's experiment, published and measured here ({chosen.depth:,} tokens, profile {chosen.name}):\n"
    )
    print(article.table(report).to_string())
    print(f"\nwrote {data.relative_to(ROOT)}/, figures/ and {out.relative_to(ROOT)}/")


def execute(path: Path, profile_name: str) -> nbformat.NotebookNode:
    """A notebook, executed in its folder under a profile, and cleaned for publication."""
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
    """Drop what a reader on the web has no use for: widgets' state, progress bars, paths of this machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_without_paths(output) for output in cell.outputs if _is_worth_keeping(output)]
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
