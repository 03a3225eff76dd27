"""A program of its own: compiles a grammar by llguidance, within limits. ``grammar`` runs it and reads what it prints.

A schema comes with a request, from anybody. One that is too deep ends the process that compiles it, and one can take
minutes or gigabytes; in a process of its own that is nobody's server. From stdin it takes the grammar; to stdout goes
SOUND, or what is wrong with it, in one line.
"""

import os
import sys
import threading
from contextlib import suppress

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

SOUND = "sound"
LIMITS = LLParserLimits(max_items_in_row=20_000, verbose_errors=False)  # hundreds of properties need more than 2,000
_MOST_SECONDS = 1
_MOST_BYTES = 1 << 30
_STACK = 1 << 24  # bytes; a quarter of what the compilation in the server has


def main() -> None:
    """Compile it, and ask for its first tokens."""
    grammar = sys.stdin.buffer.read().decode()
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LIMITS)
    matcher.compute_logit_bias()
    sys.stdout.buffer.write((matcher.get_error().partition("\n")[0] or SOUND).encode())


if __name__ == "__main__":
    with suppress(ImportError, OSError, ValueError):  # Windows has no limits; a lower one that is set already may stay
        import resource

        os.nice(10)  # answers come first
        resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    threading.stack_size(_STACK)
    compiling = threading.Thread(target=main)
    compiling.start()
    compiling.join()
