"""python -m swarmkv_lab: the helper's commands. Those of the studies too: swarmkv-lab, or python -m swarmkv_studies."""

import sys

from swarmkv_lab.cli import main

sys.exit(main())
