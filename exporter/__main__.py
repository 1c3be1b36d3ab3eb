"""``python -m exporter``."""

import sys
from pathlib import Path

# A random.py in the current folder would stand in for Python's own.
if sys.path[:1] == [str(Path.cwd())]:
    del sys.path[0]

from exporter.cli import main

if __name__ == "__main__":
    sys.exit(main())
