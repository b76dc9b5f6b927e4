"""What the bench reads out of the load programs and makes of it. No test asserts a time."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import loads
import peers
import pytest
import report
import run
from cpu import Meter, tree_seconds
from loads import BY_NAME, LOADS, Load, LoadError, Sample
from ports import free_port
from rich.console import Console

PERF_OUTPUT = (
    "performing RANDOM READ with 32 parallel requests\n\r"
    "00:00:01 - lba 8330, iops current 45600 (178 MB/s), iops average 45600 (178 MB/s), in_flight 32, busy 0     "
    "\riops average 46166 (180 MB/s)                \n\nfinished.\n"
)
QEMU_OUTPUT = "Sending 500 write requests, 1048576 bytes each, 8 in parallel\nRun completed in 0.364 seconds.\n"


def test_loads_cover_what_the_issue_asks_for() -> None:
    assert len(BY_NAME) == len(LOADS)
    shapes = {(x.write, x.block, x.depth, x.random) for x in LOADS if x.sessions == 1}
    reads = {(False, 4096, depth, random) for depth in (1, 32) for random in (True, False)}
    assert shapes == reads | {(False, 1 << 20, 8, False), (True, 4096, 32, False), (True, 1 << 20, 8, False)}
    assert {x.sessions for x in LOADS} == {1, 2}


def test_perf_rate_takes_the_final_average() -> None:
    assert loads.perf_rate(PERF_OUTPUT) == 46166.0


@pytest.mark.parametrize("output", ["", "finished.", PERF_OUTPUT.replace("finished.", "aborted!")])
def test_perf_rate_of_a_failed_run_is_an_error(output: str) -> None:
    with pytest.raises(LoadError, match="iscsi-perf gave no result"):
        loads.perf_rate(output)


def test_qemu_seconds_reads_the_duration_and_is_never_zero() -> None:
    assert loads.qemu_seconds(QEMU_OUTPUT) == 0.364
    assert loads.qemu_seconds("Run completed in 0.000 seconds.") > 0
    with pytest.raises(LoadError, match="gave no result"):
        loads.qemu_seconds("qemu-img: Could not open")


def test_perf_command_counts_in_blocks_of_the_disk() -> None:
    argv = loads.perf_command(BY_NAME["randread-4k-d32"], "iscsi://h/t/0", 3)
    assert argv[-2:] == ["-r", "iscsi://h/t/0"]
    assert argv[argv.index("-b") + 1] == "8"
    assert argv[argv.index("-m") + 1] == "32"
    assert "-r" not in loads.perf_command(BY_NAME["seqread-4k-d1"], "iscsi://h/t/0", 3)
    argv = loads.perf_command(BY_NAME["read-1m-d8"], "iscsi://h/t/0", 3, block_size=4096)
    assert argv[argv.index("-b") + 1] == "256"


def test_qemu_command_splits_the_url_and_names_the_initiator() -> None:
    argv = loads.qemu_command(BY_NAME["write-4k-d32"], "iscsi://127.0.0.1:7/iqn.2026-11.a:b/1", 10, session=1)
    assert "-w" in argv
    assert "file.portal=127.0.0.1:7,file.target=iqn.2026-11.a:b,file.lun=1" in argv[-1]
    assert argv[-1].endswith("initiator1")


def test_sessions_have_names_of_their_own() -> None:
    assert loads.initiator_name(0) != loads.initiator_name(1)


def test_run_together_returns_every_output() -> None:
    script = "import sys; print(sys.argv[1])"
    assert loads.run_together([[sys.executable, "-c", script, x] for x in "ab"], 10) == ["a\n", "b\n"]


def test_run_together_with_a_failing_program_is_an_error() -> None:
    with pytest.raises(LoadError, match="ended with 3"):
        loads.run_together([[sys.executable, "-c", "raise SystemExit(3)"]], 10)


def test_run_together_ends_a_program_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "SLACK_SECONDS", 0.2)
    with pytest.raises(LoadError, match="hangs"):
        loads.run_together([[sys.executable, "-c", "import time; time.sleep(60)"]], 0)


def test_load_shows_small_blocks_as_thousands_and_large_ones_as_megabytes() -> None:
    assert Load("x", False, 4096, 1).shown(45_600) == 45.6
    assert Load("x", False, 1 << 20, 8).shown(1000) == pytest.approx(1048.576)


def test_meter_counts_the_cpu_time_of_this_process() -> None:
    with Meter(os.getpid()) as meter:
        before = os.times()
        while sum(os.times()[:2]) - sum(before[:2]) < 0.05:
            pass
    assert meter.seconds >= 0.03  # the work loop's own 0.05, less a tick at each end
    assert meter.elapsed > 0
    assert tree_seconds(os.getpid()) >= meter.seconds


SAMPLES = {
    ("randread-4k-d32", "tgt"): [Sample(40_000, 30e-6), Sample(10_000, 31e-6), Sample(44_000, 29e-6)],
    ("randread-4k-d32", "istgt"): [Sample(20_000, 60e-6)],
    ("read-1m-d8", "istgt"): [Sample(1000, 1e-3)],
}
SHOWN = [BY_NAME["randread-4k-d32"], BY_NAME["read-1m-d8"]]


def test_middle_is_the_median_or_none() -> None:
    assert report.middle(SAMPLES, "randread-4k-d32", "tgt") == Sample(40_000, 30e-6)
    assert report.middle(SAMPLES, "read-1m-d8", "tgt") is None


def test_tables_show_figures_and_ratios_and_gaps() -> None:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed with the console
    with console.file:
        console.print(report.rate_table(SAMPLES, SHOWN, ["tgt", "istgt"]))
        console.print(report.cpu_table(SAMPLES, SHOWN, ["tgt", "istgt"]))
    text = console.export_text()
    assert "40.0" in text and "0.50×" in text
    assert "1048.6" in text and "–" in text
    assert "60.0" in text and "2.00×" in text


def test_back_ends_are_compared_with_a_raw_file() -> None:
    samples = {
        ("randread-4k-d32", "iscsid-file"): [Sample(40_000, 20e-6)],
        ("randread-4k-d32", "iscsid-qcow2"): [Sample(30_000, 25e-6)],
    }
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed with the console
    with console.file:
        console.print(report.backend_table(samples, SHOWN, ["iscsid-file", "iscsid-qcow2", "iscsid-block", "tgt"]))
    text = console.export_text()
    assert "qcow2/file" in text and "block/file" in text and "tgt" not in text
    assert "0.75×" in text and "1.25×" in text and "–" in text


def test_json_has_every_sample_and_the_ratios() -> None:
    records = json.loads(json.dumps(report.as_json(SAMPLES, SHOWN, ["tgt", "istgt"])))
    assert [(r["load"], r["server"]) for r in records] == [
        ("randread-4k-d32", "tgt"),
        ("randread-4k-d32", "istgt"),
        ("read-1m-d8", "istgt"),
    ]
    assert records[0]["rates"] == [40_000, 10_000, 44_000]
    assert records[1]["rate_ratio"] == 0.5
    assert records[1]["cpu_ratio"] == pytest.approx(2)
    assert records[2]["rate_ratio"] is None and records[2]["file_ratio"] is None


def test_only_takes_exact_names_or_parts_of_names() -> None:
    assert [x.name for x in run.chosen_loads("randread-4k-d32")] == ["randread-4k-d32"]
    assert {x.write for x in run.chosen_loads("write")} == {True}
    assert run.chosen_loads(None) == list(LOADS)
    assert run.chosen_loads("nothing") == []


def test_servers_that_do_not_exist_are_refused() -> None:
    assert run.chosen_servers(None) == list(peers.SERVERS)
    with pytest.raises(SystemExit, match="no such server: lio"):
        run.chosen_servers("tgt,lio")


def test_image_has_the_size_and_no_holes(tmp_path: Path) -> None:
    run.make_image(tmp_path / "image", 3 << 20)
    facts = (tmp_path / "image").stat()
    assert facts.st_size == 3 << 20
    assert facts.st_blocks * 512 >= facts.st_size


def test_a_missing_server_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "SEARCH_PATH", str(tmp_path))
    for server in (peers.tgt, peers.istgt, peers.limit):
        with pytest.raises(peers.Unavailable, match="not installed"), server(tmp_path, tmp_path / "image"):
            pass


def test_a_server_that_ends_at_once_is_a_start_error_with_its_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such disk')"]
    with (
        pytest.raises(peers.StartError, match="no such disk"),
        peers.spawned(argv, tmp_path, free_port(), {}),
    ):
        pass


@pytest.mark.process
@pytest.mark.judge("iscsi-perf", "qemu-img", "gcc")
def test_whole_bench_measures_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--servers", "limit", "--seconds", "1", "--rounds", "1", "--size", "16"]
    status = run.main([*words, "--only", "randread-4k-d32,write-4k-d32", "--json", str(tmp_path / "out.json")])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "write-4k-d32" in captured.out
    records = json.loads((tmp_path / "out.json").read_text())
    assert {(r["load"], r["server"]) for r in records} == {("randread-4k-d32", "limit"), ("write-4k-d32", "limit")}
    assert all(r["rate"] > 0 for r in records)
