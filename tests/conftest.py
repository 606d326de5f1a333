"""Tests may import the oracle and the golden files from this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
