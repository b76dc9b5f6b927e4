"""iscsi-initiator(8) as a user has it: a tree under a mount point, and the kernel's own tools on its files."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_server import run_judge, wait_until

from iscsid.testing import TestTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import peers

ARGV = [sys.executable, "-m", "iscsid.compat.iscsi_initiator"]
MIB = 1 << 20
NAME = "iqn.2026-11.org.iscsid.e2e:disk0"
SECONDS = 4.0  # --timeout of these mounts

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse here"),
    pytest.mark.judge("fusermount3"),
]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TestTarget]:
    luns = [
        {"backend": "file", "size": "64 MiB"},
        {"backend": "file", "size": "8 MiB", "block_size": 4096},
        {"backend": "file", "size": "1 MiB", "readonly": True},
    ]
    for number, size in enumerate((64, 8, 1)):
        with (tmp_path / f"lun{number}.img").open("wb") as file:
            file.truncate(size * MIB)
    with TestTarget(tmp_path, luns=luns, name=NAME) as made:
        yield made


class Mount:
    """One iscsi-initiator in the foreground, so that its end can be seen."""

    def __init__(self, folder: Path, port: int, *options: str, more: tuple[str, ...] = ()) -> None:
        self.at = folder / "mnt"
        self.at.mkdir(exist_ok=True)
        self.output = folder / "initiator.log"
        words = ["-h", "localhost", "-p", str(port), "--timeout", f"{SECONDS:g}", *options, str(self.at), "-f", *more]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen([*ARGV, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_until(self._there, f"the mount: {self.output}", 30)
        except BaseException:
            self.end()
            raise

    def _there(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return os.path.ismount(self.at)

    def end(self) -> int:
        """Unmount; the exit code."""
        if self.process.poll() is None:
            subprocess.run(["fusermount3", "-u", str(self.at)], check=False, capture_output=True, timeout=30)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                subprocess.run(["fusermount3", "-u", "-z", str(self.at)], check=False, capture_output=True, timeout=30)
        return self.process.returncode


StartMount = Callable[..., Mount]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[StartMount]:
    mounts: list[Mount] = []

    def start(port: int, *options: str, more: tuple[str, ...] = ()) -> Mount:
        mounts.append(Mount(tmp_path, port, *options, more=more))
        return mounts[-1]

    yield start
    for one in mounts:
        one.end()


def put(path: Path, data: bytes) -> None:
    """Write at the beginning of a file, in one call."""
    with path.open("r+b", buffering=0) as file:
        assert file.write(data) == len(data)


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    argv = [*ARGV, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_tree_is_the_original_s_and_all_units_are_there(target: TestTarget, mount: StartMount) -> None:
    at = mount(target.port).at
    assert sorted(os.listdir(at)) == ["disk0"]
    top = at / "disk0"
    links = {"hostname": "localhost", "ip": "127.0.0.1", "targetname": NAME}
    assert {name: os.readlink(top / name) for name in links} == links
    assert [len(os.readlink(top / name)) for name in ("vendor", "product", "version")] == [8, 16, 4]
    assert stat.S_IMODE(os.lstat(top / "ip").st_mode) == 0o644
    sizes = {lun: os.stat(top / path).st_size for lun, path in ((0, "storage"), (1, "lun1/storage"))}
    assert sizes == {0: 64 * MIB, 1: 8 * MIB}
    listing = run_judge("ls", "-l", top)
    assert " storage" in listing
    assert f"targetname -> {NAME}" in listing


def test_dd_and_cmp_at_odd_offsets_have_the_data(target: TestTarget, mount: StartMount, tmp_path: Path) -> None:
    at = mount(target.port).at
    data = tmp_path / "data"
    data.write_bytes(os.urandom(3 * MIB + 123))
    for path in ("disk0/storage", "disk0/lun1/storage"):
        storage = at / path
        run_judge("dd", f"if={data}", f"of={storage}", "bs=64k", "conv=notrunc,fsync", "seek=12345", "oflag=seek_bytes")
        run_judge("cmp", "-n", data.stat().st_size, "-i", "0:12345", data, storage)
        with storage.open("r+b", buffering=0) as file:
            for offset, text in ((1, b"a"), (511, b"bcd"), (4095, b"xy"), (8 * MIB - 3, b"end")):
                file.seek(offset)
                assert file.write(text) == len(text)
            os.fsync(file.fileno())
    for lun in (0, 1):
        content = target.path(lun).read_bytes()
        assert content[12345 : 12345 + data.stat().st_size] == data.read_bytes()
        assert (content[1:2], content[511:514], content[4095:4097]) == (b"a", b"bcd", b"xy")
        assert content[8 * MIB - 3 : 8 * MIB] == b"end"


def test_errors_have_their_errno(target: TestTarget, mount: StartMount) -> None:
    top = mount(target.port).at / "disk0"
    with pytest.raises(OSError) as raised:
        os.open(top / "lun2/storage", os.O_RDWR)
    assert raised.value.errno == errno.EROFS
    assert (top / "lun2/storage").read_bytes() == bytes(MIB)
    descriptor = os.open(top / "lun1/storage", os.O_RDWR)
    try:
        with pytest.raises(OSError) as raised:
            os.pwrite(descriptor, b"x", 8 * MIB)
        assert raised.value.errno == errno.ENOSPC
        os.ftruncate(descriptor, 8 * MIB)
        with pytest.raises(OSError) as raised:
            os.ftruncate(descriptor, 8 * MIB + 1)
        assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
        with target.disk(1, initiator_name="iqn.2026-11.org.iscsid.e2e:other") as other:
            other.register(7)
            other.reserve(7)
            with pytest.raises(OSError) as raised:
                os.pwrite(descriptor, b"x" * 4096, 0)
            assert raised.value.errno == errno.EBUSY
            other.release(7)
            other.register(0, old_key=7)
        assert os.pwrite(descriptor, b"x" * 4096, 0) == 4096
    finally:
        os.close(descriptor)
    assert os.stat(top / "lun1/storage").st_size == 8 * MIB


def test_a_disk_that_grows_is_longer_when_it_is_opened(target: TestTarget, mount: StartMount) -> None:
    storage = mount(target.port).at / "disk0/lun1/storage"
    assert storage.stat().st_size == 8 * MIB
    os.truncate(target.path(1), 9 * MIB)
    config = target.folder / "iscsid.toml"
    config.write_text(config.read_text().replace('"8 MiB"', '"9 MiB"'))
    run_judge(sys.executable, "-m", "iscsid", "reload", "-c", config)

    def grown() -> bool:
        storage.open("rb").close()
        return storage.stat().st_size == 9 * MIB

    wait_until(grown, "the new size")
    with storage.open("r+b", buffering=0) as file:
        file.seek(9 * MIB - 3)
        assert file.write(b"end") == 3
    assert target.path(1).read_bytes()[-3:] == b"end"


@pytest.mark.judge("mkfs.ext4")
def test_a_file_system_in_storage_is_clean(target: TestTarget, mount: StartMount) -> None:
    one = mount(target.port)
    for path in ("disk0/storage", "disk0/lun1/storage"):
        run_judge("mkfs.ext4", "-q", "-F", one.at / path)
        run_judge("e2fsck", "-f", "-n", one.at / path)
    assert "lost+found" in run_judge("debugfs", "-R", "ls -l", one.at / "disk0/storage")
    assert one.end() == 0
    run_judge("e2fsck", "-f", "-n", target.path(0))  # and on the medium


@pytest.mark.judge("mkfs.ext4")
def test_a_loop_mount_of_storage_keeps_its_files(target: TestTarget, mount: StartMount, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a loop mount needs root")
    storage, inside = mount(target.port).at / "disk0/storage", tmp_path / "inside"
    inside.mkdir()
    run_judge("mkfs.ext4", "-q", "-F", storage)
    files = {f"file{number}": os.urandom(number * 10_000 + 1) for number in range(40)}
    for again in (False, True):
        run_judge("mount", "-o", "loop,discard", storage, inside)
        try:
            for name, content in files.items():
                if again:
                    assert (inside / name).read_bytes() == content
                    (inside / name).unlink()
                else:
                    (inside / name).write_bytes(content)
        finally:
            run_judge("umount", inside)
        run_judge("e2fsck", "-f", "-n", storage)


def test_a_server_that_is_killed_is_eio_in_time_and_comes_back(
    target: TestTarget, mount: StartMount, tmp_path: Path
) -> None:
    # dd has the file open, not this process: a fork that closes it waits for the flush.
    storage, data = mount(target.port).at / "disk0/storage", tmp_path / "data"
    data.write_bytes(os.urandom(MIB))
    write = ["dd", f"if={data}", f"of={storage}", "bs=64k", "conv=notrunc,fsync"]
    read = ["dd", f"if={storage}", "of=/dev/null", "bs=4k", "count=1", "skip=9000"]
    run_judge(*write)
    target.kill()
    for words in (write, read, write):
        began = time.monotonic()
        assert "Input/output error" in run_judge(*words, check=False)
        assert time.monotonic() - began < SECONDS + 4
    target.start()
    run_judge(*write)
    run_judge(*read)
    assert target.path(0).read_bytes()[:MIB] == data.read_bytes()


def test_a_server_that_comes_back_in_time_is_not_noticed(target: TestTarget, mount: StartMount, tmp_path: Path) -> None:
    storage, data = mount(target.port, "--timeout", "60").at / "disk0/storage", tmp_path / "data"
    data.write_bytes(os.urandom(64 * MIB))
    words = ["dd", f"if={data}", f"of={storage}", "bs=10007", "conv=notrunc,fsync"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as writer:
        wait_until(lambda: target.path(0).read_bytes()[:MIB] == data.read_bytes()[:MIB], "the first MiB")
        target.kill()
        assert writer.poll() is None
        target.start()
        assert writer.wait(90) == 0
    run_judge("cmp", data, target.path(0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_and_log_out(target: TestTarget, mount: StartMount, number: int) -> None:
    one = mount(target.port)
    put(one.at / "disk0/storage", b"written")
    assert len(target.sessions()) == 1
    one.process.send_signal(number)
    assert one.process.wait(30) == 0
    assert not os.path.ismount(one.at)
    wait_until(lambda: target.sessions() == [], "the logout")
    assert target.path(0).read_bytes()[:7] == b"written"


def test_unmounting_logs_out(target: TestTarget, mount: StartMount) -> None:
    one = mount(target.port)
    assert one.end() == 0
    wait_until(lambda: target.sessions() == [], "the logout")


@pytest.mark.parametrize(("option", "kind"), [("-b", stat.S_ISBLK), ("-c", stat.S_ISCHR), ("-f", stat.S_ISREG)])
def test_storage_is_shown_as_b_c_f_say(
    target: TestTarget, mount: StartMount, option: str, kind: Callable[[int], bool]
) -> None:
    assert kind(os.stat(mount(target.port, option).at / "disk0/storage").st_mode)


def test_digests_are_used(target: TestTarget, mount: StartMount) -> None:
    storage = mount(target.port, "-d", "all").at / "disk0/storage"
    assert storage.read_bytes() == bytes(64 * MIB)


def test_daemon_is_up_when_the_shell_goes_on(target: TestTarget, tmp_path: Path) -> None:
    at = tmp_path / "mnt"
    at.mkdir()
    done = run("-p", target.port, "-t", "0", "mnt", cwd=tmp_path)
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert os.listdir(at) == ["disk0"]
    finally:
        run_judge("fusermount3", "-u", at)
    wait_until(lambda: target.sessions() == [], "the logout")
    done = run("-p", target.port, "-t", "1", at)
    assert done.returncode == 1
    assert "there is no target 1" in done.stderr


def test_targets_with_one_short_name_are_both_there(tmp_path: Path, mount: StartMount) -> None:
    with TestTarget(tmp_path, size="1 MiB", name=NAME) as target:
        target._document["target"].append(
            {"name": "iqn.2026-11.org.iscsid.twin:disk0", "lun": [{"lun": 0, "backend": "ram", "size": MIB}]}
        )
        target.stop()
        target.start()
        at = mount(target.port).at
        assert sorted(os.listdir(at)) == ["disk0", "disk0.2"]
        for directory in ("disk0", "disk0.2"):
            put(at / directory / "storage", directory.encode())
        assert (at / "disk0/storage").read_bytes()[:7] == b"disk0\0\0"


def test_chap_user_comes_from_the_auths_file(tmp_path: Path, mount: StartMount) -> None:
    auths = tmp_path / "auths"
    auths.write_text("# comment\njoe:chap:secret\\:secret1\n")
    with TestTarget(tmp_path, size="1 MiB", chap=("joe", "secret:secret1")) as target:
        done = run("-p", target.port, tmp_path)
        assert done.returncode == 1
        assert "no disk" in done.stderr
        one = mount(target.port, "-u", "joe", "--auths", str(auths))
        assert (one.at / "test/storage").read_bytes() == bytes(MIB)


@pytest.mark.judge("tgtd")
def test_tgt_s_disk_is_mounted_and_its_controller_is_not(tmp_path: Path, mount: StartMount) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    (tmp_path / "tgt").mkdir()
    try:
        with peers.tgt(tmp_path / "tgt", image) as peer:
            one = mount(int(peer.url.split("/")[2].rpartition(":")[2]))
            top = one.at / peers.TARGET_NAME.rpartition(":")[2]
            assert sorted(os.listdir(top)) == ["hostname", "ip", "lun1", "targetname"]
            assert os.readlink(top / "lun1/vendor") == "IET     "
            with (top / "lun1/storage").open("r+b", buffering=0) as file:
                file.seek(1000)
                file.write(b"tgt has it")
                os.fsync(file.fileno())
            assert one.end() == 0
    except peers.Unavailable as exc:
        pytest.skip(str(exc))
    assert image.read_bytes()[1000:1010] == b"tgt has it"
