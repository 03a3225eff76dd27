"""What argparse lacks: an error in one line that suggests what was meant, help with every default, checked values."""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from swarmkv_lab.errors import INT32_MAX, SwarmKVError, did_you_mean, not_one_of
from swarmkv_lab.files import writable

STDOUT = "-"


class Parser(argparse.ArgumentParser):
    """A parser, also of commands, that raises SwarmKVError where argparse would end the process."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"formatter_class": _Help} | how)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which leaves it to the parser above to refuse what a command does not know."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"{unknown[0]!r:.80} is no argument of {self.prog}{known}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise SwarmKVError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, not_one_of(value, action.choices))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says every option's default; where that is computed, the option's text says how. Examples stay as written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.required or action.default == argparse.SUPPRESS or "default" in text:
            return text
        return f"{text} (default: {'off' if action.default is False else '%(default)s'})"


def complain(error: object) -> None:
    """One line on stderr."""
    print("swarmkv-lab:", *str(error).splitlines(), file=sys.stderr)


def number(least: int = 0, most: int = INT32_MAX) -> Callable[[str], int]:
    """The type of an option that is a whole number from least to most."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text:.40} is not a whole number from {least:,} to {most:,}")
        return value

    return parse


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """The type of positional arguments that may be left out: argparse's choices would refuse that there are none."""

    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(not_one_of(text, known))
        return text

    return check


def names(known: Collection[str], **groups: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of an option that is a list of names, separated by commas. groups: names that stand for several."""
    check = one_of([*known, *groups])

    def parse(text: str) -> list[str]:
        found = [check(name.strip()) for name in text.split(",")]
        return list(dict.fromkeys(name for one in found for name in groups.get(one, [one])))

    return parse


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option whose SwarmKVError is to name the option."""

    def parse(text: str) -> Any:
        try:
            return check(text)
        except SwarmKVError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def output(text: str) -> str:
    """The type of a file that is written at the end: refused at once where that would fail."""
    folder = writable(text).parent
    if not os.path.isdir(folder):
        raise SwarmKVError(f"the folder of {text!r:.200} does not exist")
    if not os.access(folder, os.W_OK):
        raise SwarmKVError(f"nothing can be written in the folder of {text!r:.200}")
    return text
