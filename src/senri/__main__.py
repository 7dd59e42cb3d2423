"""`python -m senri` is `senri`; it lets `accelerate launch -m senri train ...` start the command line."""

import sys

from senri.cli import main

if __name__ == "__main__":
    sys.exit(main())
