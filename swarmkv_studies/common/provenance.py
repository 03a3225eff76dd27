"""Provenance: where and how a number was measured, so that it can be understood and repeated; and how it is kept."""

import platform
import re
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from swarmkv_lab.files import as_json, replacing
from swarmkv_lab.llama.api import LLAMA_CPP_VERSION, gpus
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings

_PACKAGES = ("numpy", "pandas", "matplotlib", "jupyterlab", "ipywidgets")


def environment(model: Model, settings: ContextSettings = ContextSettings(), **about: Any) -> dict[str, Any]:  # noqa: B008
    """The machine, the versions, the model and the settings of a measurement, ready for JSON.

    about: other choices to record. Of the context settings, only those that are not the default are recorded.
    """
    chosen = {one.name: value for one in fields(settings) if (value := getattr(settings, one.name)) != one.default}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": ", ".join(device.description for device in gpus()) if model.on_gpu else False,
        "python": platform.python_version(),
        "llama_cpp": LLAMA_CPP_VERSION,
        "packages": {name: version(name) for name in _PACKAGES if find_spec(name)},  # a server may have no Jupyter
        "model": model.name,
        "model_hash": model.content_hash,
        "n_threads": settings.threads,
        "settings": about | chosen,
    }


def keep(path: Path, what: pd.DataFrame | dict[str, Any]) -> None:
    """Write a table as CSV, or a report as JSON, as a whole: half a file would be kept the next time."""
    text = what.to_csv(index=False) if isinstance(what, pd.DataFrame) else as_json(what, indent=1) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def processor() -> str:
    """The processor's name if the system tells it (Linux), else the architecture.

    A virtual machine may hide which generation of processor it runs on. Such a name has no number, and the family is
    added to it: "AMD EPYC family 26" and "AMD EPYC family 25" are two machines.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    hidden = "cpu family" in fields and not re.search(r"\d", name)
    return f"{name} family {fields['cpu family']}" if hidden else name
