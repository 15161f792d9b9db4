"""`python -m cvlab`: see `cvlab.cli`."""

import sys

from cvlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
