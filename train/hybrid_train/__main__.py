"""python -m hybrid_train: the hybrid-train command, also under torchrun."""

import sys

from hybrid_train.cli import main

sys.exit(main())
