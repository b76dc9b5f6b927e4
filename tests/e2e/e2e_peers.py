"""Other people's targets, and ours among them, with a disk of which nobody has written anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import peers


@contextmanager
def running(name: str, folder: Path, size: int, **options: Any) -> Iterator[str]:
    """The URL of a disk of ``size`` bytes on the server ``name`` of peers.SERVERS; ``options`` are the server's."""
    image, own = folder / "image", folder / "server"
    with image.open("wb") as file:
        file.truncate(size)
    own.mkdir()
    try:
        with peers.SERVERS[name](own, image, **options) as peer:
            yield peer.url
    except peers.Unavailable as exc:
        pytest.skip(str(exc))
