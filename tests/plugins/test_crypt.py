"""What is below is encrypted, as others do it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins import luks
from layer_kit import SIZE, Recorder, read, write

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]
Judge = Callable[[str], str]
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(64)))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("sector", [512, 4096])
def test_data_is_read_back_and_is_not_below(below: Recorder, wrap: Wrap, key_file: str, sector: int) -> None:
    guard = Guarded(wrap(below, "crypt", format="plain", key_file=key_file, sector=sector))
    assert guard.block_size == sector
    data = memoryview(bytes(65536))
    for call in (guard.write, guard.write_now):
        call(data[:4096], 8192)
        assert data == bytes(65536)  # the caller's memory is not touched
        assert read(guard, 8192, 4096) == bytes(4096)
        assert len(set(below.memory[8192:12288])) > 200
    guard.write(data, 65536, True)
    assert below.names()[-1] == "write_fua"
    buffer = bytearray(b"x" * 4096)
    guard.read_now(memoryview(buffer), 65536)
    assert buffer == bytes(4096)
    guard.close()


def test_equal_sectors_are_not_equal_below(below: Recorder, wrap: Wrap, key_file: str) -> None:
    guard = Guarded(wrap(below, "crypt", format="plain", key_file=key_file))
    write(guard, bytes(SIZE))
    sectors = {bytes(below.memory[at : at + 512]) for at in range(0, SIZE, 512)}
    assert len(sectors) == SIZE // 512
    guard.close()


@pytest.mark.judge("qemu-img")
def test_image_of_qemu_is_read_and_what_we_write_is_read_by_qemu(
    tmp_path: Path, judge: Judge, all_plugins: Plugins
) -> None:
    """QEMU's LUKS has aes-xts-plain64 of its own."""
    key, raw, image = tmp_path / "key", tmp_path / "raw", tmp_path / "image"
    key.write_bytes(PASSPHRASE)
    key.chmod(0o600)
    data = random.Random(1).randbytes(SIZE)
    raw.write_bytes(data)
    secret = ["--object", f"secret,id=s,file={key}"]
    qemu = judge("qemu-img")
    options = "key-secret=s,iter-time=100"
    create = [qemu, "create", "-q", *secret, "-f", "luks", "-o", options, str(image), str(SIZE)]
    # QEMU measures how fast it is, and gives up ("Unable to get accurate CPU usage") when others run meanwhile.
    assert any(subprocess.run(create, check=False).returncode == 0 for _ in range(10))
    target = f"driver=luks,key-secret=s,file.filename={image}"
    convert = [qemu, "convert", "-n", *secret]
    subprocess.run([*convert, "-f", "raw", "--target-image-opts", str(raw), target], check=True)
    plugins, options_below = all_plugins, {"path": str(image)}
    prepared = plugins.prepare("file", options_below)
    device = plugins.wrap(plugins.open("file", prepared), "crypt", {"key_file": str(key)})
    assert device.size == SIZE
    assert read(device, 0, SIZE) == data
    write(device, b"ours" * 1024, 8192)
    device.flush()
    device.close()
    plugins.release("file", prepared)  # QEMU would not have it beside us
    out = tmp_path / "out"
    subprocess.run([qemu, "convert", *secret, "--image-opts", target, "-O", "raw", str(out)], check=True)
    assert out.read_bytes() == data[:8192] + b"ours" * 1024 + data[12288:]


@pytest.mark.judge("cryptsetup")
@pytest.mark.parametrize("sector", [512, 4096])
def test_what_cryptsetup_encrypts_is_read(tmp_path: Path, judge: Judge, sector: int, all_plugins: Plugins) -> None:
    """Its sectors, however long, are numbered by 512 bytes, and its key is in a header of its own."""
    key, image = tmp_path / "key", tmp_path / "image"
    key.write_bytes(PASSPHRASE)
    key.chmod(0o600)
    data = random.Random(2).randbytes(1 << 20)
    image.write_bytes(data + bytes(33 << 20))  # cryptsetup takes the room for its header from the end
    command = [judge("cryptsetup"), "reencrypt", "--encrypt", "-q", "--type", "luks2", "--reduce-device-size", "32M"]
    command += ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", str(sector)]
    subprocess.run([*command, "--key-file", str(key), str(image)], check=True, capture_output=True)
    below = all_plugins.open("file", {"path": str(image), "readonly": True})
    device = all_plugins.wrap(below, "crypt", {"key_file": str(key)})
    assert read(device, 0, len(data)) == data
    assert read(device, len(data), 65536) == bytes(65536)
    device.close()


class Large(Recorder):
    size = 18 << 20


def test_format_makes_a_header_on_a_blank_device_only(tmp_path: Path, wrap: Wrap, all_plugins: Plugins) -> None:
    key, below = tmp_path / "key", Large()
    key.write_bytes(PASSPHRASE)
    key.chmod(0o600)
    options = {"key_file": str(key), "sector": 4096}
    answer = all_plugins.layer_verb("crypt", options, "format", lambda: below)
    assert len(answer["uuid"]) == 36
    guard = Guarded(wrap(below, "crypt", key_file=str(key)))
    assert (guard.size, guard.block_size) == (2 << 20, 4096)
    write(guard, b"x" * 4096)
    assert read(guard, 0, 4096) == b"x" * 4096
    assert any(below.memory[16 << 20 : (16 << 20) + 4096])
    guard.close()
    with pytest.raises(PluginError, match="there is something at the beginning"):
        all_plugins.layer_verb("crypt", options, "format", lambda: below)


def test_secret_is_in_no_message(tmp_path: Path, below: Recorder, all_plugins: Plugins) -> None:
    key = tmp_path / "key"
    key.write_bytes(PASSPHRASE)
    key.chmod(0o600)
    with pytest.raises(PluginError) as caught:
        all_plugins.wrap(below, "crypt", {"key_file": str(key)})
    assert "no LUKS header" in str(caught.value)
    assert PASSPHRASE.decode() not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"x" * 10, 0o600, "must have 32 or 64 bytes, the two halves of which differ"),
        (b"x" * 64, 0o600, "the two halves of which differ"),
        (bytes(range(64)), 0o604, "can be read by everybody"),
        (b"", 0o600, "has no bytes"),
        (None, 0, "key_file: No such file or directory"),
    ],
)
def test_key_that_is_no_good_is_a_problem_of_the_configuration(
    tmp_path: Path, all_plugins: Plugins, content: bytes | None, mode: int, reason: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    (problem,) = all_plugins.validate_layer("crypt", {"key_file": str(path), "format": "plain"})
    assert reason in problem


def test_data_that_is_not_on_the_device_is_refused(below: Recorder) -> None:
    from iscsid_plugins.crypt import Crypt

    from iscsid.errors import BlockError

    with pytest.raises(BlockError, match="is not on a device of 1048576 bytes"):
        Crypt(below, luks.Volume(SIZE, None, 512, 0, bytes(range(64))))
