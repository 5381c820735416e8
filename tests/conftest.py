"""One thread a process: models this small gain nothing from more, and the suite runs one process a core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
