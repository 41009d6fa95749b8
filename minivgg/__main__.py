"""`python -m minivgg` is `minivgg`."""

import sys

from minivgg.cli.main import main

sys.exit(main())
