"""python -m swarmkv_studies: the same as swarmkv-lab."""

import sys

from swarmkv_studies.cli import main

sys.exit(main())
