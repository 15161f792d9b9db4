"""`python -m cvlab`: see `cvlab.tools.cli`."""

import sys

from cvlab.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
