"""python -m hybrid_export: the hybrid-export command."""

import sys

from hybrid_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
