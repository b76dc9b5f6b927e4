"""What the tests of one session's engine share: the modules beside them, and a check that nothing is left over."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
