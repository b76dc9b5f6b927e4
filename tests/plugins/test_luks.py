"""Headers of cryptsetup and QEMU open here, ours open there, and damaged ones are refused."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins import luks
from layer_kit import Recorder

from iscsid.errors import BlockError

Judge = Callable[[str], str]
PASSPHRASE = b"correct horse battery staple"
SIZE = 18 << 20


class Disk(Recorder):
    size = SIZE

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.size = max(SIZE, len(content))
        self.memory = bytearray(content.ljust(self.size, b"\0"))


@pytest.fixture(scope="module")
def made() -> bytes:
    """A device with a header of ours."""
    disk = Disk()
    luks.create(disk, PASSPHRASE, sector=4096, memory=1024, time=1)
    return bytes(disk.memory)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(PASSPHRASE)
    path.chmod(0o600)
    return path


def test_split_key_needs_every_part() -> None:
    parts = luks.split(b"k" * 64, "sha256")
    assert luks.merge(parts, 64, "sha256") == b"k" * 64
    assert luks.merge(bytes(64) + parts[64:], 64, "sha256") != b"k" * 64


def test_header_of_ours_opens_by_its_passphrase_only(made: bytes) -> None:
    volume = luks.unlock(Disk(made), PASSPHRASE)
    assert (volume.offset, volume.size, volume.sector, len(volume.key)) == (16 << 20, None, 4096, 64)
    assert volume.key.hex() not in repr(volume)
    with pytest.raises(BlockError, match="no key slot opens"):
        luks.unlock(Disk(made), PASSPHRASE + b"\n")


def test_second_header_stands_in_for_a_damaged_first(made: bytes) -> None:
    disk = Disk(made)
    disk.memory[5000] ^= 1
    assert luks.unlock(disk, PASSPHRASE).offset == 16 << 20
    disk.memory[16384 + 5000] ^= 1
    with pytest.raises(BlockError, match="no LUKS header, or it is damaged"):
        luks.unlock(disk, PASSPHRASE)


def test_second_header_of_an_earlier_format_is_not_taken(made: bytes) -> None:
    """It lay behind larger headers, and nothing has been written there since; the key in it is another."""
    disk = Disk(made)
    content = json.loads(bytes(disk.memory[4096:16384]).split(b"\0")[0])
    content["segments"]["0"]["offset"] = str(17 << 20)
    place = 1 << 20
    stale = bytearray(luks._binary(content, place, "x").ljust(place, b"\0"))
    stale[8:24] = place.to_bytes(8, "big") + (99).to_bytes(8, "big")  # its size, and a number above the present one
    at = luks._HEADER.size - 64
    stale[at : at + 32] = luks._checksum(bytes(stale), "sha256")
    disk.memory[place : 2 * place] = stale
    assert luks.unlock(disk, PASSPHRASE).offset == 16 << 20
    disk.memory[0] ^= 1  # who has lost the first header looks wherever there may be a second
    assert luks.unlock(disk, PASSPHRASE).offset == 17 << 20


def test_newer_second_header_is_taken(made: bytes) -> None:
    disk = Disk(made)
    content = json.loads(bytes(disk.memory[4096:16384]).split(b"\0")[0])
    content["segments"]["0"]["offset"] = str(17 << 20)
    newer = bytearray(luks._binary(content, 16384, "x"))
    newer[16:24] = (2).to_bytes(8, "big")
    at = luks._HEADER.size - 64
    newer[at : at + 32] = luks._checksum(bytes(newer), "sha256")
    disk.memory[16384:32768] = newer
    assert luks.unlock(disk, PASSPHRASE).offset == 17 << 20


@pytest.mark.parametrize("offset", [0, 512, 32256])
def test_data_that_would_overwrite_its_header_is_refused(made: bytes, offset: int) -> None:
    """Such a header is made to lie apart from its data."""
    with pytest.raises(BlockError, match="the data lies in its header"):
        luks.unlock(_rewritten(made, lambda c: c["segments"]["0"].update(offset=str(offset))), PASSPHRASE)


@pytest.mark.judge("cryptsetup")
def test_luks1_header_that_lies_apart_from_its_data_is_refused(tmp_path: Path, judge: Judge, key_file: Path) -> None:
    path, header = tmp_path / "disk", tmp_path / "header"
    path.write_bytes(bytes(SIZE))
    command = [judge("cryptsetup"), "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"]
    header.write_bytes(bytes(SIZE))
    subprocess.run([*command, "--header", str(header), str(path), str(key_file)], check=True, capture_output=True)
    with pytest.raises(BlockError, match="the data lies in its header"):
        luks.unlock(Disk(header.read_bytes()), PASSPHRASE)


def test_headers_are_written_after_the_key_slot_is_on_the_medium() -> None:
    disk = Disk()
    luks.create(disk, PASSPHRASE, sector=512, memory=1024, time=1)
    assert [(name, offset) for name, offset, _ in disk.calls] == [
        ("write", 32768),
        ("flush", 0),
        ("write", 16384),
        ("write", 0),
        ("flush", 0),
    ]


def test_device_without_room_is_refused() -> None:
    with pytest.raises(BlockError, match="has no room"):
        luks.create(Recorder(), PASSPHRASE, sector=512)


@pytest.mark.judge("cryptsetup")
@pytest.mark.parametrize("kdf", ["argon2id", "argon2i", "pbkdf2"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_luks2_of_cryptsetup_opens(tmp_path: Path, judge: Judge, key_file: Path, kdf: str, sector: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    quick = ["--pbkdf-force-iterations", "1000" if kdf == "pbkdf2" else "4"]
    quick += [] if kdf == "pbkdf2" else ["--pbkdf-memory", "1024", "--pbkdf-parallel", "1"]
    command = [judge("cryptsetup"), "luksFormat", "-q", "--type", "luks2", "--pbkdf", kdf, *quick]
    subprocess.run([*command, "--sector-size", str(sector), str(path), str(key_file)], check=True, capture_output=True)
    volume = luks.unlock(Disk(path.read_bytes()), PASSPHRASE)
    assert (volume.offset, volume.sector) == (16 << 20, sector)
    assert volume.key == _volume_key(judge, path, key_file)


@pytest.mark.judge("cryptsetup")
def test_luks1_of_cryptsetup_opens(tmp_path: Path, judge: Judge, key_file: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    command = [judge("cryptsetup"), "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"]
    subprocess.run([*command, str(path), str(key_file)], check=True, capture_output=True)
    volume = luks.unlock(Disk(path.read_bytes()), PASSPHRASE)
    assert volume.key == _volume_key(judge, path, key_file)


@pytest.mark.judge("cryptsetup")
def test_cryptsetup_opens_a_header_of_ours(tmp_path: Path, judge: Judge, key_file: Path, made: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(made)
    command = [judge("cryptsetup"), "open", "--test-passphrase", "--key-file", str(key_file), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    assert _volume_key(judge, path, key_file) == luks.unlock(Disk(made), PASSPHRASE).key
    repair = subprocess.run(
        [judge("cryptsetup"), "repair", "-q", str(path)], check=False, capture_output=True, text=True
    )
    assert repair.returncode == 0, repair.stderr
    assert path.read_bytes() == made


def _volume_key(judge: Judge, path: Path, key_file: Path) -> bytes:
    into = path.with_suffix(".key")
    command = [judge("cryptsetup"), "luksDump", "-q", "--dump-volume-key", "--key-file", str(key_file)]
    subprocess.run([*command, "--volume-key-file", str(into), str(path)], check=True, capture_output=True)
    return into.read_bytes()


def _rewritten(made: bytes, change: Callable[[Any], Any]) -> Disk:
    """The header with another JSON, sound otherwise."""
    disk = Disk(made)
    content = json.loads(bytes(disk.memory[4096:16384]).split(b"\0")[0])
    change(content)
    disk.memory[:16384] = luks._binary(content, 0, "x")
    disk.memory[16384:32768] = bytes(16384)
    return disk


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["config"].update(requirements={"mandatory": ["online-reencrypt"]}), "requires online-reencrypt"),
        (lambda c: c["segments"].update({"1": c["segments"]["0"]}), "not one segment"),
        (lambda c: c["segments"]["0"].update(encryption="serpent-xts-plain64"), "not aes-xts-plain64"),
        (lambda c: c["segments"]["0"].update(integrity={}), "integrity is not supported"),
        (lambda c: c["segments"]["0"].update(sector_size=100), "sector size is no good"),
        (lambda c: c["segments"]["0"].update(offset=5), "not understood"),
        (lambda c: c["keyslots"]["0"]["kdf"].update(memory=1 << 40), "too much memory or work"),
        (lambda c: c["keyslots"]["0"]["kdf"].update(time=10**9), "too much memory or work"),
        (lambda c: c["keyslots"]["0"]["af"].update(stripes=10**9), "stripes are no good"),
        (lambda c: c["keyslots"]["0"]["area"].update(offset=str(1 << 40)), "not on the device"),
        (lambda c: c["digests"]["0"].update(iterations=1 << 40), "too much work"),
        (lambda c: c["digests"]["0"].update(salt="A"), "not understood"),
        (lambda c: c.update(digests={str(n): c["digests"]["0"] for n in range(20)}), "too many digests"),
        (lambda c: c.pop("segments"), "not understood"),
        (lambda c: c.update(keyslots=[]), "not understood"),
    ],
)
def test_header_that_asks_for_what_is_not_there_is_refused(
    made: bytes, change: Callable[[Any], Any], reason: str
) -> None:
    with pytest.raises(BlockError, match=reason):
        luks.unlock(_rewritten(made, change), PASSPHRASE)


def test_random_damage_is_an_error_and_no_more(made: bytes) -> None:
    rng = random.Random(1)
    for _ in range(200):
        disk = Disk(made)
        for _ in range(3):
            disk.memory[rng.randrange(32768)] = rng.randrange(256)
        try:
            assert luks.unlock(disk, PASSPHRASE).offset == 16 << 20
        except BlockError:
            continue
