"""The bench is a script in a folder of its own; its tests import its modules the way the script does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
