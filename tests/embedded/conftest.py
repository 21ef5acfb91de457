"""Puts the repository's root on the import path: `deploy` is shipped beside the package, not in it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
