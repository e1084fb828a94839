"""`python -m perturblab`."""

import sys

from perturblab.cli import main

sys.exit(main())
