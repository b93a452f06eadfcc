"""python -m hybrid_rt reports the environment: versions, CPU, GPU, what works, what is missing."""

import sys

from hybrid_rt.environment import main

sys.exit(main())
