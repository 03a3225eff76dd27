"""Commands for answers: ask many questions in many ways, and say which answers are right."""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

import swarmkv_lab as lab
from swarmkv_lab.analysis.quality import read_study
from swarmkv_lab.analysis.timeline import BASELINE
from swarmkv_lab.cli.options import add_command, open_model
from swarmkv_lab.cli.snapshots import require_output
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.files import as_json, read_text, user_path
from swarmkv_lab.measure.study import ARMS


def add_commands(commands: Any) -> None:
    """Add the commands study and score to an argparse parser."""
    about = "ask many questions with every strategy and KV type, keep the answers, and score them"
    one = add_command(commands, "study", about, _study, "--document", "--model", "--weights", "--n-gpu-layers")
    _add_questions(one)
    one.add_argument("--out", required=True, help="a CSV file; an interrupted study goes on with it")
    one.add_argument("--arms", default=",".join(ARMS), help="names, comma-separated")
    one.add_argument("--parts", type=int, default=4, help="the document is cut in so many")
    one.add_argument("--max-tokens", type=int, default=40, help="tokens of each answer")

    about = "say which answers are right; needs no model"
    one = add_command(commands, "score", about, _score, "--json")
    _add_questions(one)
    one.add_argument("answers", help="a CSV file with the columns id and answer, or a JSON object of answers by id")


def _add_questions(one: argparse.ArgumentParser) -> None:
    one.add_argument("--questions", default="dossier", help="dossier, or a JSON file's path")


def _study(args: argparse.Namespace) -> None:
    path = user_path(args.out)
    require_output("--out", path)
    questions = lab.load_questions(args.questions)
    with open_model(args) as model:
        how = {
            "arms": [name.strip() for name in args.arms.split(",")],
            "n_parts": args.parts,
            "max_tokens": args.max_tokens,
        }
        frame = lab.study(model, questions, args.document, path=path, **how)
    _print(lab.score(frame, questions), len(questions))


def _score(args: argparse.Namespace) -> None:
    questions = lab.load_questions(args.questions)
    scored = lab.score(_read(user_path(args.answers)), questions)
    if args.json:
        print(as_json(scored.to_dict("records"), indent=1))
        return
    _print(scored, len(questions))


def _read(path: Path) -> Any:
    """A study's CSV, any CSV with the columns id and answer, or a JSON object of answers by id."""
    text = read_text(path)
    if path.suffix == ".csv":
        return read_study(path)
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SwarmKVError(f"{path.name} is neither a .csv file nor JSON: {error}") from error
    if not isinstance(answers, dict):
        raise SwarmKVError(f"{path.name} must be a JSON object: an answer by each question's id")
    return answers


def _print(scored: pd.DataFrame, n_questions: int) -> None:
    """Accuracy by what there is to compare; of a plain list of answers, those that are wrong."""
    if not {"model", "arm"} & {*scored} and not scored.right.all():
        print(f"{scored.loc[~scored.right, ['id', 'answer', 'why']].to_string(index=False)}\n")
    print(lab.accuracy(scored).round(3).to_string(index=False))
    if {"model", "arm", "token_hash"} <= {*scored} and BASELINE in {*scored.arm} and scored.arm.nunique() > 1:
        print(f"\ncompared with {BASELINE}'s answers:")
        print(lab.differences(scored).round(3).to_string(index=False))
    print(f"\n{int(scored.right.sum()):,} of {len(scored):,} answers are right")
    if unanswered := n_questions - scored.id.nunique():
        print(f"{unanswered:,} of {n_questions:,} questions have no answer")
