"""Images that QEMU made with every combination of its options: read through the server, written, and still sound.

CI takes so many that each two values of two options meet; ``ISCSID_QCOW2_OPTIONS=all`` takes all combinations.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_qcow2 import SECTOR, Kind, Served, assert_same, assert_sound, forget_image, make_image, served

from iscsid.initiator.disk import Disk

EVERY = os.environ.get("ISCSID_QCOW2_OPTIONS", "") == "all"
BATCH = 16  # images that are served at once
SIZE = (2 << 20) + 300 * SECTOR

OPTIONS: dict[str, tuple[str, ...]] = {
    "compat": ("1.1", "0.10"),
    "cluster_size": ("512", "4k", "16k", "64k", "2M"),
    "refcount_bits": ("16", "1", "2", "4", "8", "32", "64"),
    "lazy_refcounts": ("off", "on"),
    "extended_l2": ("off", "on"),
    "compression": ("none", "zlib", "zstd"),
    "backing": ("none", "raw", "qcow2"),
    "data": ("none", "file", "raw"),
    "preallocation": ("off", "metadata", "falloc", "full"),
}
Choice = dict[str, str]

pytestmark = [pytest.mark.judge("qemu-img"), pytest.mark.timeout(3600 if EVERY else 120)]


def possible(choice: Choice) -> bool:
    """Whether QEMU makes such an image."""
    new = choice["refcount_bits"] != "16" or choice["compression"] == "zstd" or choice["data"] != "none"
    return not (
        (choice["compat"] == "0.10" and (new or "on" in (choice["lazy_refcounts"], choice["extended_l2"])))
        or (choice["extended_l2"] == "on" and choice["cluster_size"] in ("512", "4k"))
        or (choice["compression"] != "none" and (choice["data"] != "none" or choice["preallocation"] != "off"))
        or (choice["data"] == "raw" and choice["backing"] != "none")
        or (choice["preallocation"] != "off" and choice["backing"] != "none" and choice["extended_l2"] == "off")
    )


def all_choices() -> list[Choice]:
    product = (dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values()))
    return [choice for choice in product if possible(choice)]


def pairs_of(choice: Choice) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(choice.items(), 2))


def sample(choices: list[Choice]) -> list[Choice]:
    """So many of ``choices`` that they have every pair that there is."""
    rng = random.Random(0)
    left = set[tuple[tuple[str, str], ...]]().union(*map(pairs_of, choices))
    chosen: list[Choice] = []
    while left:
        wanted = dict(min(left))
        able = [choice for choice in choices if wanted.items() <= choice.items()]
        best = max(rng.sample(able, min(40, len(able))), key=lambda choice: len(left & pairs_of(choice)))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


def kind_of(choice: Choice) -> Kind:
    words = [f"{name}={choice[name]}" for name in OPTIONS if name not in ("compression", "backing", "data")]
    if choice["compression"] == "zstd":
        words.append("compression_type=zstd")
    if choice["data"] != "none":
        words.append("data_file={path}.data")
    if choice["data"] == "raw":
        words.append("data_file_raw=on")
    base = choice["backing"].replace("none", "")
    return Kind(",".join(words), choice["compression"] != "none", base)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


def change(disk: Disk, model: bytearray, rng: random.Random) -> None:
    """A write, zeros or UNMAP somewhere, in the model too."""
    blocks = len(model) // SECTOR
    length = rng.choice((1, 8, 128, rng.randrange(1, 700))) * SECTOR
    offset = rng.randrange(blocks - length // SECTOR) * SECTOR
    data = bytes(length)
    what = rng.choice("wwwwzud")
    if what == "w":
        disk.write(offset, data := rng.randbytes(length))
    elif what == "d":
        disk.discard(offset, length)
    else:
        disk.write_zeroes(offset, length, may_unmap=what == "u")
    model[offset : offset + length] = data


def test_pairs_of_all_values_are_in_the_sample() -> None:
    choices = all_choices()
    chosen = sample(choices)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, choices))
    assert len(chosen) < 100 < 1000 < len(choices)
    assert {(name, value) for choice in chosen for name, value in choice.items()} == {
        (name, value) for name, values in OPTIONS.items() for value in values
    }


def test_image_with_any_options_of_qemu_is_read_and_written_and_stays_sound(where: Served, tmp_path: Path) -> None:
    choices = all_choices() if EVERY else sample(all_choices())
    rng = random.Random(1)
    for begun in range(0, len(choices), BATCH):
        batch = [(tmp_path / f"{begun + at}.qcow2", choice) for at, choice in enumerate(choices[begun : begun + BATCH])]
        models = [make_image(kind_of(choice), path, SIZE, filled=True) for path, choice in batch]
        where.serve(*(path for path, _ in batch))
        for lun, ((_, choice), model) in enumerate(zip(batch, models, strict=True)):
            with where.disk(lun=lun) as disk:
                assert disk.read(0, disk.size) == model, choice
                for _ in range(12):
                    change(disk, model, rng)
                assert disk.read(0, disk.size) == model, choice
        where.drop()
        for (path, choice), model in zip(batch, models, strict=True):
            try:
                assert_sound(path)
                assert_same(path, model)
            except AssertionError as error:
                raise AssertionError(choice) from error
            if choice["data"] == "raw":
                assert Path(f"{path}.data").read_bytes()[: len(model)] == model
            forget_image(path)


def test_what_is_not_possible_is_refused_by_qemu(tmp_path: Path) -> None:
    """The table above leaves nothing out that there could be."""
    product = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
    first = {name: values[0] for name, values in OPTIONS.items()}
    few = [choice for choice in product if sum(choice[name] != first[name] for name in OPTIONS) == 2]
    for choice in (choice for choice in few if not possible(choice)):
        path = tmp_path / "disk.qcow2"
        with pytest.raises(AssertionError, match="qemu-img"):
            make_image(kind_of(choice), path, SIZE, filled=True)
        forget_image(path)
