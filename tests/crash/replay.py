"""What a crash may leave of a disk: states out of a record of the layer ``record``, and whether ext4 is whole in each.

    python tests/crash/replay.py RECORD [BASE] [--history FILE] [--format qcow2] [--points 100] [--seed 0] [--mount]

A state is a moment and a choice. What a flush promised at that moment, or was written with FUA, is there. Of all else
that had been written or was being written, each sector of 512 bytes may be there or not; later writes go over earlier
ones. BASE is what was on the device when the record began (nothing, if it is left out).

In each state e2fsck has to bring the file system up without asking (its journal, orphans), and must then find nothing;
with ``--mount`` (root) the kernel does it instead. What the history of the workload says has been synced has to be
there, with its content: ``tests/crash/workload.py`` makes records that have one.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iscsid_plugins.record import (
    DISCARD,
    DURABLE,
    FAILED,
    FLUSH,
    READS_ZEROES,
    WRITE,
    Entry,
    entries,
    geometry,
)

SECTOR = 512
CHOICES = ("nothing", "all", "writes", "sectors")
TOOL_SECONDS = 120


class Violation(AssertionError):
    """A state that the rules allow, and that is not whole."""


# -- states ----------------------------------------------------------------------------------------------------------


class Crashes:
    """States after ``record``, for moments in ascending order.

    Moments are lengths of the record. ``base`` is the content of the device at its beginning; it is changed.
    """

    def __init__(self, record: Sequence[Entry], base: bytearray, seed: int = 0) -> None:
        self._record, self._image, self._random = record, base, random.Random(seed)
        self._settled = 0  # how many entries are in the image
        self._ends = [entry.end for entry in record]

    def promised(self, moment: int) -> int:
        """How many of the first entries are on the medium for sure: those before the last flush that was done."""
        done = self._record[: bisect.bisect_right(self._ends, moment)]
        before = max((entry.begun for entry in done if entry.kind == FLUSH), default=0)
        return bisect.bisect_right(self._ends, before)

    def state(self, moment: int, choice: str) -> bytearray:
        """The content of the medium if the crash comes at ``moment``, with what ``choice`` takes of the rest.

        ``nothing`` and ``all`` of it, whole ``writes``, or single ``sectors`` of them; the last two by chance.
        """
        promised = self.promised(moment)
        for entry in self._record[self._settled : promised]:
            self._put(self._image, entry, "sectors" if entry.flags & FAILED else "all")
        self._settled = max(self._settled, promised)
        image = bytearray(self._image)
        for entry in self._record[promised:]:
            if entry.end <= moment:
                self._put(image, entry, "all" if entry.flags & DURABLE and not entry.flags & FAILED else choice)
            elif entry.begun < moment:
                self._put(image, entry, choice)
        return image

    def _put(self, image: bytearray, entry: Entry, choice: str) -> None:
        if entry.kind == FLUSH or choice == "nothing" or (choice == "writes" and self._random.random() < 0.5):
            return
        if entry.kind == DISCARD and not entry.flags & READS_ZEROES and self._random.random() < 0.5:
            return
        data = entry.data if entry.kind == WRITE else memoryview(bytes(entry.length))
        if choice != "sectors":
            image[entry.offset : entry.offset + entry.length] = data
            return
        share = self._random.choice((0.1, 0.5, 0.9))
        for at in range(0, entry.length, SECTOR):
            if self._random.random() < share:
                image[entry.offset + at : entry.offset + at + SECTOR] = data[at : at + SECTOR]


# -- the history of a workload -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """``name`` got the content with this SHA-256, or went (None). The record was ``begun`` bytes long before, and had
    ``done`` bytes when it was synced."""

    name: str
    digest: str | None
    begun: int
    done: int


@dataclass
class History:
    """What a workload did, in its order, once the file system was made, at ``start``."""

    start: int = 0
    versions: list[Version] = field(default_factory=list)

    def allowed(self, moment: int) -> dict[str, set[str | None]]:
        """What each name may hold after a crash: the version that was synced last, or one that came after it."""
        answer: dict[str, set[str | None]] = {}
        for version in self.versions:
            if version.done <= moment:
                answer[version.name] = {version.digest}
            elif version.begun <= moment:
                answer.setdefault(version.name, {None}).add(version.digest)
        return answer

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"start": self.start, "versions": [vars(version) for version in self.versions]}))

    @classmethod
    def load(cls, path: Path) -> History:
        document = json.loads(path.read_text())
        return cls(document["start"], [Version(**version) for version in document["versions"]])


# -- judges ------------------------------------------------------------------------------------------------------------


def tool(*words: object, good: Iterable[int] = (0,)) -> str:
    """Run a program; its output. Raises Violation for any other exit code."""
    argv = [str(word) for word in words]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
    )
    if done.returncode not in good:
        raise Violation(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def digest_of(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def contents_by_fsck(image: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Bring the file system up by e2fsck, and read the files by debugfs."""
    tool("e2fsck", "-f", "-p", image, good=(0, 1))  # it refuses, with 4, what a journal does not explain
    tool("e2fsck", "-f", "-n", image)
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        commands = Path(folder) / "commands"
        commands.write_text("".join(f"dump /{name} {folder}/file.{name}\n" for name in names))
        tool("debugfs", "-f", commands, image)
        return {name: digest_of(Path(folder) / f"file.{name}") for name in names}


def contents_by_mount(image: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Let the kernel bring the file system up, and read the files."""
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        tool("mount", "-t", "ext4", "-o", "loop", image, folder)
        try:
            found = {name: digest_of(Path(folder) / name) for name in names}
        finally:
            tool("umount", folder)
    tool("e2fsck", "-f", "-n", image)
    return found


def raw_of(image: Path, kind: str) -> Path:
    """The disk that is in an image. One of qcow2 has to be sound first: leaks are allowed, corruption is not."""
    if kind == "raw":
        return image
    tool("qemu-img", "check", "-q", "-f", kind, image, good=(0, 3))
    raw = image.with_suffix(".disk")
    tool("qemu-img", "convert", "-f", kind, "-O", "raw", image, raw)
    return raw


# -- a run -------------------------------------------------------------------------------------------------------------


def moments(record: Sequence[Entry], history: History, count: int, seed: int) -> list[tuple[int, str]]:
    """``count`` moments and choices, in order: as syncs are answered, just before flushes are done, and any."""
    chance = random.Random(seed)
    ends = [entry.end for entry in record if entry.end >= history.start]
    flushes = [earlier.end for earlier, entry in itertools.pairwise(record) if entry.kind == FLUSH]
    kinds = (
        [version.done for version in history.versions] or ends,
        [end for end in flushes if end >= history.start] or ends,
        ends,
    )
    return sorted((chance.choice(kinds[number % 3]), CHOICES[number % len(CHOICES)]) for number in range(count))


def verify(image: Path, moment: int, history: History, kind: str = "raw", mount: bool = False) -> None:
    """Raises Violation unless the state in the file ``image``, which is changed, is one that may be."""
    allowed = history.allowed(moment)
    contents = contents_by_mount if mount else contents_by_fsck
    found = contents(raw_of(image, kind), sorted(allowed))
    lost = {name: found[name] for name in allowed if found[name] not in allowed[name]}
    if lost:
        raise Violation(f"lost, or not what was synced: {lost}; there may be {[allowed[name] for name in lost]}")


def load_record(path: Path) -> tuple[int, list[Entry]]:
    """The size of the recorded device, and what was done to it. Raises Violation for a record of nothing."""
    content = memoryview(path.read_bytes())
    size, _ = geometry(bytes(content[:64]), str(path))
    record = list(entries(content, str(path)))
    if not record:
        raise Violation(f"{path} is empty")
    return size, record


def run(
    record: Sequence[Entry],
    base: bytearray,
    history: History,
    folder: Path,
    *,
    kind: str = "raw",
    points: int = 100,
    seed: int = 0,
    mount: bool = False,
) -> Iterator[tuple[int, str]]:
    """Build and verify ``points`` states; yields each when it is verified. With ``mount``, half of them are mounted.

    ``base`` is as for Crashes. The image of a state that is not whole stays in ``folder``. Raises Violation.
    """
    crashes = Crashes(record, base, seed)
    image = folder / "state.img"
    for number, (moment, choice) in enumerate(moments(record, history, points, seed)):
        state = crashes.state(moment, choice)
        image.unlink(missing_ok=True)  # mount takes a loop device that somebody still holds again, with the last state
        image.write_bytes(state)
        try:
            verify(image, moment, history, kind, mount and number // len(CHOICES) % 2 == 1)
        except Violation as reason:
            image.write_bytes(state)
            raise Violation(f"crash at {moment} with {choice} of what was pending, in {image}: {reason}") from None
        yield moment, choice


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the states that a crash may leave of a recorded disk.")
    parser.add_argument("record", type=Path, help="the file of the layer record")
    parser.add_argument("base", type=Path, nargs="?", help="what was on the device when the record began")
    parser.add_argument("--history", type=Path, help="what the workload had synced, by workload.py")
    parser.add_argument("--format", choices=("raw", "qcow2"), default="raw", help="of what is on the recorded device")
    parser.add_argument("--points", type=int, default=100, help="how many states (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mount", action="store_true", help="mount half of the states (root)")
    given = parser.parse_args()
    history = History.load(given.history) if given.history else History()
    folder = Path(tempfile.mkdtemp(prefix="iscsid-crash-"))
    count = 0
    try:
        size, record = load_record(given.record)
        base = bytearray(size)
        if given.base:
            base[:] = given.base.read_bytes().ljust(size, b"\0")[:size]
        options = {"kind": given.format, "points": given.points, "seed": given.seed, "mount": given.mount}
        for _ in run(record, base, history, folder, **options):
            count += 1
    except Violation as reason:
        print(f"after {count} good states: {reason}", file=sys.stderr)
        return 1
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    print(f"{count} states, each whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
