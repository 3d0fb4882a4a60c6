"""`python -m electra_dist` is `electra-dist`."""

import sys

from electra_dist.cli import main

sys.exit(main())
