"""python -m swarmkv_lab: the same as swarmkv-lab."""

import swarmkv_lab.cli.__main__  # noqa: F401
