"""``iscsid disk`` as people use it: processes that are killed, images that QEMU compares, reservations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_server import Server, run_judge, wait_until

from iscsid.errors import ReservationConflict
from iscsid.initiator import open_disk
from iscsid.testing import TestTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import peers

MIB = 1 << 20
SIZE = 96 * MIB
OTHER = "iqn.2026-11.org.example:other"


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A third of it random data, the rest holes."""
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in (0, 40 * MIB, 80 * MIB + 8192):
            file.seek(offset)
            file.write(os.urandom(10 * MIB))
    return path


def argv(*words: object) -> list[str]:
    return [sys.executable, "-m", "iscsid", "disk", *map(str, words)]


def run(*words: object, code: int = 0) -> str:
    done = subprocess.run(argv(*words), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def place_on_medium(path: Path) -> int:
    return path.stat().st_blocks * 512


def position(state: Path) -> int:
    try:
        return int(json.loads(state.read_text())["position"])
    except (FileNotFoundError, ValueError):
        return 0


def start_and_end(state: Callable[[], Path | None], number: int, *words: object) -> tuple[int, str]:
    """Start a copy, and end it by a signal when its state says that some of it is done; how it ended."""
    with subprocess.Popen(argv(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def begun() -> bool:
            path = state()
            if process.poll() is not None:
                raise AssertionError(f"the copy ended too early, with {process.returncode}")
            return path is not None and position(path) > 0

        try:
            wait_until(begun, "the copy is under way")
            process.send_signal(number)
            output, _ = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
        return process.returncode, output


def slow(rate: str = "24 MiB", **lun: Any) -> dict[str, Any]:
    """A LUN on which the copy takes a few seconds."""
    return {"size": SIZE, "layers": [{"layer": "rate", "bytes_per_second": rate}], **lun}


@pytest.mark.judge("qemu-img")
def test_copies_compare_equal_by_qemu_and_stay_sparse(
    iscsid_targets: Callable[..., TestTarget], image: Path, tmp_path: Path
) -> None:
    target = iscsid_targets(luns=[{"backend": "file", "size": SIZE}, {"backend": "file", "size": SIZE}])
    run("copy", image, target.url(0), "--verify")
    run("copy", target.url(0), target.url(1), "--verify")
    run("copy", target.url(1), tmp_path / "back.raw", "--verify")
    for other in (target.url(0), target.url(1), tmp_path / "back.raw"):
        assert "identical" in run_judge("qemu-img", "compare", "-f", "raw", "-F", "raw", image, str(other))
    run_judge("cmp", image, tmp_path / "back.raw")
    for path in (target.path(0), target.path(1), tmp_path / "back.raw"):
        assert place_on_medium(path) < place_on_medium(image) + MIB


@pytest.mark.parametrize(
    "server",
    [
        pytest.param("tgt", marks=pytest.mark.judge("tgtd")),
        pytest.param("istgt", marks=pytest.mark.judge("istgt")),
    ],
)
def test_disks_of_other_servers_are_copied_and_measured(server: str, image: Path, tmp_path: Path) -> None:
    folder, medium = tmp_path / "server", tmp_path / "medium"
    folder.mkdir()
    with medium.open("wb") as file:
        file.truncate(SIZE)
    with peers.SERVERS[server](folder, medium) as peer:
        url = peer.url
        run("info", url)
        run("copy", image, url, "--verify")
        run("copy", url, tmp_path / "back.raw", "--verify")
        run_judge("cmp", image, tmp_path / "back.raw")
        assert json.loads(run("bench", url, "--seconds", "0.5", "--json"))["total"]["commands"] > 10
        if server != "tgt":  # which takes every login for a new initiator: nobody could release
            run("reserve", url, "--key", "0x12")
            assert "0x12" in run("keys", url)
            run("release", url, "--key", "0x12")
    assert place_on_medium(tmp_path / "back.raw") < place_on_medium(image) + MIB


def test_copy_over_old_content_leaves_none_of_it(iscsid_targets: Callable[..., TestTarget], image: Path) -> None:
    target = iscsid_targets(backend="file", size=SIZE)
    with target.disk() as disk:
        for offset in range(0, SIZE, 8 * MIB):
            disk.write(offset, b"old!" * (2 * MIB))
        disk.flush()
    run("copy", image, target.url(), "--verify")
    target.stop()
    run_judge("cmp", image, target.path())
    assert place_on_medium(target.path()) < place_on_medium(image) + MIB


def test_copy_to_a_disk_that_was_killed_is_resumed(
    iscsid_targets: Callable[..., TestTarget], image: Path, state_home: Path
) -> None:
    target = iscsid_targets(**slow(backend="file"))

    def state() -> Path | None:
        return next(iter(state_home.rglob("*.json")), None)

    code, _ = start_and_end(state, signal.SIGKILL, "copy", image, target.url(), "--no-sparse")
    assert code == -signal.SIGKILL
    left = state()
    assert left is not None
    done = position(left)
    assert 0 < done < SIZE
    assert "did not end" in run("copy", image, target.url(), code=1)
    assert "of them before" in run("copy", image, target.url(), "--resume", "--verify")
    assert state() is None
    target.stop()
    run_judge("cmp", image, target.path())


def test_copy_to_a_file_that_was_killed_is_resumed(
    iscsid_targets: Callable[..., TestTarget], image: Path, tmp_path: Path
) -> None:
    target = iscsid_targets(**slow("8 MiB", backend="file", path=str(image)))
    back = tmp_path / "back.raw"
    left = tmp_path / "back.raw.iscsid-copy"
    start_and_end(lambda: left, signal.SIGKILL, "copy", target.url(), back, "--depth", "4")
    assert 0 < position(left) < SIZE
    assert "of them before" in run("copy", target.url(), back, "--resume", "--verify")
    assert not left.exists()
    run_judge("cmp", image, back)
    assert place_on_medium(back) < place_on_medium(image) + MIB


def test_ctrl_c_says_how_to_go_on(iscsid_targets: Callable[..., TestTarget], image: Path, tmp_path: Path) -> None:
    target = iscsid_targets(**slow())
    run("copy", image, target.url())
    back = tmp_path / "back.raw"
    left = tmp_path / "back.raw.iscsid-copy"
    code, output = start_and_end(lambda: left, signal.SIGINT, "copy", target.url(), back, "--no-sparse")
    again = f"iscsid disk copy {target.url()} {back} --resume --no-sparse"
    assert (code, output) == (1, f"iscsid: interrupted; to go on: {again}\n")
    run(*again.split()[2:])
    run_judge("cmp", image, back)


def test_target_that_is_killed_under_a_copy_loses_nothing(
    iscsid_targets: Callable[..., TestTarget], image: Path, state_home: Path
) -> None:
    target = iscsid_targets(**slow(backend="file"))
    with subprocess.Popen(argv("copy", image, target.url(), "-q", "--no-sparse")) as process:
        try:
            wait_until(lambda: any(position(path) for path in state_home.rglob("*.json")), "the copy is under way")
            target.kill()
            target.start()
            assert process.wait(90) == 0
        except BaseException:
            process.kill()
            raise
    target.stop()
    run_judge("cmp", image, target.path())


def test_bench_of_three_sessions_prints_sane_json(start: Callable[..., Server], ram: list[dict[str, Any]]) -> None:
    server = start(ram)
    words = ("--seconds", "1", "--sessions", "3", "--mix", "70", "--write-to-this-disk")
    found = json.loads(run("bench", server.url(), *words, "--json"))
    total = found["total"]
    assert total["commands"] == found["read"]["commands"] + found["write"]["commands"]
    assert found["read"]["commands"] / total["commands"] == pytest.approx(0.7, abs=0.1)
    assert total["iops"] == pytest.approx(total["commands"] / found["seconds"], rel=0.01)
    # Little's law: what is in flight is rate times latency.
    assert total["iops"] * total["mean_us"] / 1e6 == pytest.approx(3 * 32, rel=0.4)
    assert 0 < total["p50_us"] <= total["p99_us"] <= total["p99.9_us"] <= total["max_us"]


def test_reservation_of_one_process_stops_others_until_a_third_releases_it(
    start: Callable[..., Server], ram: list[dict[str, Any]]
) -> None:
    url = start(ram).url()
    mine = ("--initiator-name", "iqn.2026-11.org.example:mine")
    run("reserve", url, "--key", "0xabc", *mine)
    with open_disk(url, initiator_name=OTHER) as disk:
        with pytest.raises(ReservationConflict):
            disk.write(0, bytes(512))
        disk.read(0, 512)
    assert "is reserved: write-exclusive by 0xabc" in run(
        "reserve", url, "--key", "7", "--initiator-name", OTHER, code=1
    )
    assert "is not registered" in run("release", url, "--key", "0xabc", "--initiator-name", OTHER, code=1)
    run("release", url, "--key", "0xabc", *mine)
    with open_disk(url, initiator_name=OTHER) as disk:
        disk.write(0, bytes(512))
    assert json.loads(run("keys", url, "--json"))["keys"] == []
