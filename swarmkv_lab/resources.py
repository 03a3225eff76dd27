"""Where the package's data files lie: beside it in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
DATA = ROOT / "data" if (ROOT / "data" / "catalogue.csv").is_file() else _PACKAGE / "data"
