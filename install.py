"""Install the lab into the environment of the Python that runs this: python install.py [EXTRA ...], such as test.

llama.cpp is compiled on the spot, its library alone (llama.cmake): the only long step, and this says how far it is.
CMAKE_ARGS reaches the compilation, such as CMAKE_ARGS="-DGGML_CUDA=on" for an NVIDIA GPU. Needs nothing but pip.
"""

import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections import deque
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEP = re.compile(r"\[\s*(\d+)/(\d+)\] ")  # how ninja counts
PIP_SAYS = ("Collecting ", "Downloading ", "Building wheel", "Installing ")


def main(extras: list[str]) -> None:
    """Install llama-cpp-python, then the lab with its extras, where the code is (--editable)."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (binding,) = (needed for needed in project["dependencies"] if needed.startswith("llama-cpp-python"))
    alone = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE={shlex.quote((HERE / 'llama.cmake').as_posix())}"
    environment = os.environ | {"CMAKE_ARGS": f"{alone} {os.environ.get('CMAKE_ARGS', '')}".strip()}
    pip(f"1 of 2: {binding}, which compiles llama.cpp: two to five minutes on two cores", binding, env=environment)
    lab = f"{HERE}[{','.join(extras)}]" if extras else str(HERE)
    pip("2 of 2: the lab and its packages, about a minute", "--editable", lab, env=environment)


def pip(title: str, *what: str, env: dict[str, str]) -> None:
    """Run pip install, show how far it is, and exit with its last lines if it fails."""
    print(title, flush=True)
    start, said = time.monotonic(), deque[str](maxlen=40)
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--no-input", *what]
    show = Line()
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        for line in running.stdout or ():
            said.append(line.rstrip())
            if step := STEP.search(line):
                show(f"compiling, step {step[1]} of {step[2]}", int(step[1]) * 10 // int(step[2]))
            elif line.strip().startswith(PIP_SAYS):
                show(line.split(" (from ")[0].strip(), None)
    show.end()
    if running.returncode:
        print(*said, sep="\n", file=sys.stderr)
        sys.exit(f"pip failed (status {running.returncode}); its last lines are above")
    print(f"  took {time.monotonic() - start:.0f} s", flush=True)


class Line:
    """What goes on: one line that is written over in a terminal; in a log a line for each tenth."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.tenth: int | None = None

    def __call__(self, text: str, tenth: int | None) -> None:
        """Show a text; in a log only if a tenth has passed since the last one."""
        if self.terminal:
            width = os.get_terminal_size().columns - 1
            print(f"\r{'  ' + text:<{width}.{width}}", end="", flush=True)
        elif tenth is not None and tenth != self.tenth:
            self.tenth = tenth
            print(f"  {text}", flush=True)

    def end(self) -> None:
        """Leave an empty line in a terminal."""
        if self.terminal:
            print(f"\r{'':<{os.get_terminal_size().columns - 1}}\r", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
