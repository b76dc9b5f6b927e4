"""The modules beside the tests, the rig of the target's tests, and the end-to-end tests' server."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "target")]
