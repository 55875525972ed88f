"""``python -m jepa_vl``: the command line without an installed script."""

import sys

from jepa_vl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
