"""reproduce: run the article's experiment on this machine, draw the figures and execute notebooks."""

import nbformat

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.cli.program import table
from swarmkv_lab.files import REFERENCE, ROOT, RUNS
from swarmkv_studies.book import gallery
from swarmkv_studies.cli.notebooks import execute
from swarmkv_studies.cli.steps import BENCH, STEPS, Setup, run_step
from swarmkv_studies.common.measurements import Measurements
from swarmkv_studies.common.summary import bench_text
from swarmkv_studies.naive_vs_fanout.article_table import article_table
from swarmkv_studies.peers import strategies as peers


def reproduce(profile_name: str | None = None, *, reference: bool = False, all_notebooks: bool = False) -> None:
    """Measure, print the article's numbers beside ours, draw the figures, and execute notebooks.

    Data, figures and executed notebooks go to data/runs/PROFILE. Data that is already there is kept, so that an
    interrupted call can be continued; remove it to measure again. The quick profile executes the notebooks of the
    article's experiment, unless ``all_notebooks``; the full one executes all. With ``reference`` (for maintainers) the
    data goes to data/reference, more of it is measured, and figures/ and notebooks/ are replaced. Raises SwarmKVError
    outside a checkout of the project, and for a reference where something that it needs is missing.
    """
    chosen = studies.profile(profile_name)
    everything = reference or all_notebooks or not chosen.notebooks
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not paths:
        raise lab.SwarmKVError("there is no notebooks folder beside swarmkv_lab: run this in a checkout of the project")
    if reference and (missing := peers.missing(peers.PEERS)):  # before an hour is spent
        raise lab.SwarmKVError(f"the reference cannot be measured here: {'; '.join(dict.fromkeys(missing.values()))}")
    notebooks = [path for path in paths if everything or path.stem in chosen.notebooks]
    data = REFERENCE if reference else RUNS / chosen.name
    data.mkdir(parents=True, exist_ok=True)
    with lab.load_model() as model:
        setup = Setup(model, model.read(lab.load_document("dossier")), chosen, data)
        run_step(BENCH, setup)
        measured = Measurements(data)
        steps = [step for step in STEPS if step is not BENCH and (reference or step.for_readers)]
        ahead = f"{', '.join(step.name for step in steps)}, the figures and {len(notebooks)} notebooks"
        print("\nThe article's experiment; published: on a GTX 1080, with Qwen2.5-7B and 3,501 tokens\n")
        print(f"{table(article_table(measured.bench))}\n\n{bench_text(measured.bench)}\n\nNext: {ahead}.\n", flush=True)
        for step in steps:
            run_step(step, setup)
    print("drawing the figures", flush=True)
    drawn = gallery.FIGURES if reference else data / "figures"
    gallery.draw(measured, drawn)

    out = ROOT / "notebooks" if reference else data / "notebooks"
    out.mkdir(exist_ok=True)
    for path in notebooks:
        print(f"executing {path.stem}", flush=True)
        nbformat.write(execute(path, chosen.name), out / path.name)

    print(f"\nWrote {data.relative_to(ROOT)}/, {drawn.relative_to(ROOT)}/ and {out.relative_to(ROOT)}/")
    if len(notebooks) < len(paths):
        print(
            "The other notebooks are committed with their outputs. make lab opens them all to run; "
            "swarmkv-lab reproduce --all-notebooks executes them here."
        )
