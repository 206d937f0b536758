"""Compare two results of the benchmark: ``python bench/compare.py before.json after.json``."""

import sys

from fastconv.benchmark.compare import main

sys.exit(main())
