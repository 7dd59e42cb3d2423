"""`python -m senri.cli` is `senri`."""

import sys

from senri.cli.main import main

sys.exit(main())
