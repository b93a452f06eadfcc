"""python -m hybrid_rt is hybrid-predict."""

import sys

from hybrid_rt.cli import main

sys.exit(main())
