"""Commands for answers: ask many questions in many ways, and say which answers are right."""

import argparse
import json
from typing import Any

import pandas as pd

import swarmkv_studies as studies
from swarmkv_lab.errors import SwarmKVError
from swarmkv_lab.fanout.timeline import BASELINE
from swarmkv_lab.files import read_text, user_path
from swarmkv_studies.answers.quality import read_study
from swarmkv_studies.answers.study import ARMS
from swarmkv_studies.cli.options import RUNS_MODEL, add_command, add_option, open_model, report
from swarmkv_studies.cli.parser import checked, names, number, output


def add_commands(commands: Any) -> None:
    """Add the commands study and score to an argparse parser."""
    about = "ask many questions with every strategy and KV type, keep the answers, and score them"
    shared = ("--document", *RUNS_MODEL, "--weights")
    one = add_command(commands, "study", about, _study, *shared, example="--out study.csv --arms naive,shared,batched")
    _add_questions(one)
    about = "a CSV file; an interrupted study goes on with it"
    one.add_argument("--out", type=checked(output), required=True, metavar="FILE", help=about)
    about = f"names, separated by commas, of {', '.join(ARMS)} (default: all)"
    one.add_argument("--arms", type=names(ARMS), metavar="NAMES", help=about)
    about = "the document is cut in so many"
    one.add_argument("--parts", type=number(1), default=4, metavar="N", help=about)
    add_option(one, "--max-tokens", default=40)

    about = "say which answers are right; needs no model"
    one = add_command(commands, "score", about, _score, "--json", example="study.csv")
    _add_questions(one)
    about = "a CSV file with the columns id and answer, or a JSON object of answers by id"
    one.add_argument("answers", metavar="FILE", help=about)


def _add_questions(one: argparse.ArgumentParser) -> None:
    one.add_argument("--questions", default="dossier", metavar="FILE", help="dossier, or a JSON file's path")


def _study(args: argparse.Namespace) -> None:
    questions = studies.load_questions(args.questions)
    how = {"arms": args.arms or list(ARMS), "n_parts": args.parts, "max_tokens": args.max_tokens}
    with open_model(args, args.weights) as model:
        frame = studies.study(model, questions, args.document, path=args.out, n_threads=args.threads, **how)
    print(_text(studies.score(frame, questions), len(questions)))


def _score(args: argparse.Namespace) -> None:
    questions = studies.load_questions(args.questions)
    scored = studies.score(_read(args.answers), questions)
    report(args, scored.to_dict("records"), _text(scored, len(questions)))


def _read(path: str) -> Any:
    """A study's CSV, any CSV with the columns id and answer, or a JSON object of answers by id."""
    text = read_text(path)
    if path.endswith(".csv"):
        return read_study(user_path(path))
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SwarmKVError(f"{path} is neither a .csv file nor JSON: {error}") from error
    if not isinstance(answers, dict):
        raise SwarmKVError(f"{path} must be a JSON object: an answer by each question's id")
    return answers


def _text(scored: pd.DataFrame, n_questions: int) -> str:
    """Accuracy by what there is to compare; of a plain list of answers, those that are wrong."""
    parts = []
    if not {"model", "arm"} & {*scored} and not scored.right.all():
        parts.append(f"{scored.loc[~scored.right, ['id', 'answer', 'why']].to_string(index=False)}\n")
    parts.append(studies.accuracy(scored).round(3).to_string(index=False))
    if {"model", "arm", "token_hash"} <= {*scored} and BASELINE in {*scored.arm} and scored.arm.nunique() > 1:
        compared = studies.differences(scored).round(3).to_string(index=False)
        parts.append(f"\ncompared with {BASELINE}'s answers:\n{compared}")
    parts.append(f"\n{int(scored.right.sum()):,} of {len(scored):,} answers are right")
    if unanswered := n_questions - scored.id.nunique():
        parts.append(f"{unanswered:,} of {n_questions:,} questions have no answer")
    return "\n".join(parts)
