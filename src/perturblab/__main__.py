"""`python -m perturblab`."""

import sys

from perturblab.cli.main import main

sys.exit(main())
