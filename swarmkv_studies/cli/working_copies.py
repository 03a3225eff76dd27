"""Working copies of the notebooks: a reader runs and changes those, and git sees nothing of it."""

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path


def copy_notebooks(notebooks: Sequence[Path], folder: Path) -> list[str]:
    """Copy notebooks into ``folder``, and return the names of those whose copies the reader has changed meanwhile.

    Those are left as they are. A copy that was not changed follows its original. What was copied is kept in
    ``folder``/.originals, for that comparison.
    """
    kept = []
    (folder / ".originals").mkdir(parents=True, exist_ok=True)
    for path in notebooks:
        copy, original = folder / path.name, folder / ".originals" / path.name
        if original.exists() and filecmp.cmp(path, original, shallow=False) and copy.exists():
            continue
        if copy.exists() and not (original.exists() and filecmp.cmp(copy, original, shallow=False)):
            kept.append(path.name)
            continue
        shutil.copyfile(path, original)
        shutil.copyfile(path, copy)
    return kept
