"""Where the package's data files lie: beside it in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent
_IN_CHECKOUT = (ROOT / "data" / "catalogue.csv").is_file()
DATA = ROOT / "data" if _IN_CHECKOUT else _PACKAGE / "data"
REFERENCE = DATA / "reference"
RUNS = (ROOT if _IN_CHECKOUT else Path.cwd()) / "data" / "runs"  # what a reader measures and exports
