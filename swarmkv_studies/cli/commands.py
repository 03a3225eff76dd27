"""All commands, and those that are one call each."""

import argparse

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.files import DATA, ROOT, user_path
from swarmkv_lab.sizing.geometry import kv_types
from swarmkv_studies.cli import answers, bench, cluster, pipeline, snapshots
from swarmkv_studies.cli.gpu import SUBJECTS, measure_gpu
from swarmkv_studies.cli.options import MODEL, add_command, report
from swarmkv_studies.cli.parser import STDOUT, Parser, number, one_of
from swarmkv_studies.kv_sizing.memory import catalogue_bytes


def parser() -> Parser:
    """The parser of the whole command line. Without a command it prints its help."""
    whole = Parser(
        prog="swarmkv-lab",
        description="Prefill a document once, fan its KV cache out to many agents, and measure what that saves.",
        epilog="swarmkv-lab COMMAND --help says a command's options, their defaults, and an example.",
    )
    whole.add_argument("--version", action="version", version=f"swarmkv-lab {lab.__version__}")
    whole.set_defaults(command=lambda _: whole.print_help())
    commands = whole.add_subparsers(title="commands", metavar="COMMAND")

    about = "print the path of a model; the default model is fetched if necessary"
    one = add_command(commands, "model", about, _model, example="smollm2-135m")
    one.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)

    snapshots.add_commands(commands)
    answers.add_commands(commands)
    bench.add_commands(commands)
    pipeline.add_commands(commands)
    cluster.add_commands(commands)

    about = "predict the bytes of a snapshot; needs no weights"
    shared = ("--kv-type", "--n-gpu-layers", "--threads", "--json")
    one = add_command(commands, "size", about, _size, *shared, example="qwen2.5-7b --tokens 3501 --measure")
    what = one.add_mutually_exclusive_group(required=True)
    about = "a catalogue name such as qwen2.5-7b, or a GGUF's path"
    what.add_argument("source", nargs="?", metavar="NAME_OR_PATH", help=about)
    what.add_argument("--list", action="store_true", help="all models of the catalogue")
    one.add_argument("--tokens", type=number(1), default=3501, metavar="N", help="tokens in the snapshot")
    one.add_argument("--measure", action="store_true", help="also measure with llama.cpp: the GGUF itself, or a twin")

    about = "run the article's experiment, the figures and the notebooks"
    one = add_command(commands, "reproduce", about, _reproduce, example="--profile full")
    one.add_argument("--profile", choices=["quick", "full"], default="quick", help="how much to measure")
    one.add_argument("--all-notebooks", action="store_true", help="execute all of them (quick: the article's two)")
    one.add_argument("--reference", action="store_true", help="for maintainers: replace the committed results")

    about = "copy the notebooks into my_notebooks/, where you can run and change them"
    add_command(commands, "notebooks", about, _notebooks, example="")

    about = "for maintainers: the article's experiment on a GPU; a limit: timeout -s INT 300 swarmkv-lab gpu"
    one = add_command(commands, "gpu", about, _gpu, example="qwen2.5-7b --out gpu")
    about = f"by default all of {', '.join(SUBJECTS)}"
    one.add_argument("names", nargs="*", metavar="NAME", type=one_of(SUBJECTS), help=about)
    one.add_argument("--out", metavar="FOLDER", help="folder for the measurements (default: data/gpu)")
    return whole


def _model(args: argparse.Namespace) -> None:
    print(lab.model_path(args.model))


def _size(args: argparse.Namespace) -> None:
    if args.list:
        columns = ["billions", "attention", "n_ctx_train", "bytes_per_token", "gguf"]
        frame = catalogue_bytes(args.tokens, args.kv_type)[columns].reset_index().round({"bytes_per_token": 0})
        looks = {"bytes_per_token": "{:,.0f}".format, "gguf": lambda known: "yes" if known else ""}
        text = frame.to_string(index=False, formatters=looks)
        says = f"{len(frame)} models; bytes per token of {args.tokens:,}; those with a gguf are also names for --model"
        report(args, frame.to_dict("records"), f"{text}\n{says}")
        return
    shape, kv_type = lab.geometry(args.source), ",".join(dict.fromkeys(kv_types(args.kv_type)))
    predicted, per_token = shape.snapshot_bytes(args.tokens, args.kv_type), shape.bytes_per_token(args.kv_type)
    text = f"{args.source}, {args.tokens:,} tokens, KV in {kv_type}\n"
    text += f"  predicted  {predicted:>18,} bytes per snapshot, {per_token:,} per token"
    measured = None
    if args.measure:
        how = {"n_gpu_layers": args.n_gpu_layers, "n_threads": args.threads}
        kv = studies.measure_kv(args.source, args.tokens, args.kv_type, progress=args.json != STDOUT, **how)
        measured = kv["measured_bytes"]
        text += f"\n  measured   {measured:>18,} bytes, {measured - predicted:+,} from the prediction"
    record = {"source": args.source, "tokens": args.tokens, "kv_type": kv_type}
    sizes = {"snapshot_bytes": predicted, "bytes_per_token": per_token, "measured_bytes": measured}
    report(args, record | sizes, text)


def _reproduce(args: argparse.Namespace) -> None:
    from swarmkv_studies.cli.reproduce import reproduce  # imports Jupyter, which no other command needs

    reproduce(args.profile, reference=args.reference, all_notebooks=args.all_notebooks)


def _notebooks(args: argparse.Namespace) -> None:
    from swarmkv_studies.cli.notebooks import project_notebooks
    from swarmkv_studies.cli.working_copies import copy_notebooks

    kept = copy_notebooks(project_notebooks(), ROOT / "my_notebooks")
    print("my_notebooks/ holds the notebooks, to run and to change")
    for name in kept:
        print(f"kept your my_notebooks/{name}, though notebooks/{name} is a newer one: rename yours to get it")


def _gpu(args: argparse.Namespace) -> None:
    measure_gpu(args.names or SUBJECTS, user_path(args.out or DATA / "gpu"))
