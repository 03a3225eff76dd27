"""python -m swarmkv_lab: the same as swarmkv-lab."""

import sys

from swarmkv_lab.cli import main

sys.exit(main())
