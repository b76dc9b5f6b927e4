"""Two portal groups: the same disk through both, each with an access state that every session and worker sees."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from e2e_initiator import Initiator, Refused
from e2e_server import TARGET, Server, run_judge, wait_until

StartServer = Callable[..., Server]

TEST_UNIT_READY = bytes(6)
RTPG = bytes.fromhex("a30a 00000000 00000100 0000")
STPG = bytes.fromhex("a40a 00000000 00000008 0000")
GOOD, CHECK_CONDITION = 0x00, 0x02
STANDBY, CHANGED = (0x02, 0x04, 0x0B), (0x06, 0x2A, 0x06)
SECOND_GROUP = '[[portal_group]]\ntag = 2\nportals = ["127.0.0.1:0"]\n'


@pytest.fixture
def server(tmp_path: Any, request: pytest.FixtureRequest) -> Any:
    """Two portals in two groups, one RAM disk; two workers, or as many as the parameter says."""
    extra = getattr(request, "param", "")
    workers, extra = (extra, "") if isinstance(extra, int) else (2, extra)
    made = Server(tmp_path / "server", [{"backend": "ram", "size": "64 MiB"}], workers=workers)
    made.config.write_text(made.config.read_text() + "\n" + SECOND_GROUP)
    if extra:
        made.config.write_text(made.config.read_text().replace("[[target.lun]]", f"{extra}\n[[target.lun]]"))
    yield made.start()
    made.finish()


def through(server: Server, portal: int, name: str) -> Initiator:
    host, _, port = server.portal(portal).rpartition(":")
    return Initiator((host, int(port)), f"iqn.2026-11.org.iscsid.e2e:{name}")


def outcome(initiator: Initiator, cdb: bytes, data: bytes = b"") -> tuple[int, int, int] | None:
    """The sense that the command ends in, None for GOOD."""
    status, answer = initiator.command(cdb, data)
    if status == GOOD:
        return None
    assert status == CHECK_CONDITION
    sense = answer[2:]
    return sense[2] & 0x0F, sense[12], sense[13]


def states(initiator: Initiator) -> dict[int, int]:
    status, data = initiator.command(RTPG, expect=0x100)
    assert status == GOOD
    return {tag: state & 0x0F for state, tag in struct.iter_unpack(">BxHxxxxxxxx", data[4:])}


def set_state(server: Server, tag: int, state: str, *words: str) -> None:
    done = server.ask_command("alua", TARGET, str(tag), state, *words)
    assert done.returncode == 0, done.stderr


def test_state_set_by_the_administrator_is_seen_by_both_sessions(server: Server) -> None:
    one, two = through(server, 0, "one"), through(server, 1, "two")
    assert server.worker_of(one.name) != server.worker_of(two.name)
    one.write(7, b"x" * 512)
    assert two.read(7, 1) == b"x" * 512  # one disk
    assert states(one) == states(two) == {1: 0, 2: 0}
    set_state(server, 2, "standby")
    assert outcome(one, TEST_UNIT_READY) == outcome(two, TEST_UNIT_READY) == CHANGED
    assert outcome(one, TEST_UNIT_READY) is None
    assert outcome(two, TEST_UNIT_READY) == STANDBY
    assert states(one) == states(two) == {1: 0, 2: 2}
    set_state(server, 2, "active/optimized", "--preferred")
    assert outcome(two, TEST_UNIT_READY) == CHANGED
    assert outcome(two, TEST_UNIT_READY) is None
    assert "preferred" in server.ask_command("alua").stdout
    one.close()
    two.close()


def test_state_set_by_an_initiator_is_seen_by_both_sessions(server: Server) -> None:
    one, two = through(server, 0, "one"), through(server, 1, "two")
    assert server.worker_of(one.name) != server.worker_of(two.name)
    assert outcome(one, STPG, bytes(4) + bytes.fromhex("02 00 0002")) is None
    assert outcome(one, TEST_UNIT_READY) is None
    assert outcome(two, TEST_UNIT_READY) == CHANGED
    assert outcome(two, TEST_UNIT_READY) == STANDBY
    assert outcome(two, STPG, bytes(4) + bytes.fromhex("00 00 0002")) is None  # it takes itself out of standby
    assert outcome(two, TEST_UNIT_READY) is None
    one.close()
    two.close()


@pytest.mark.parametrize(
    "server", ['[[target.portal_group]]\ntag = 2\nstate = "active/non-optimized"\n'], indirect=True
)
def test_portal_whose_group_does_not_serve_the_target_does_not_find_it(server: Server) -> None:
    with pytest.raises(Refused) as caught:
        through(server, 0, "one")
    assert caught.value.status == 0x0203
    two = through(server, 1, "two")
    assert states(two) == {2: 1}
    two.close()


@pytest.mark.judge("iscsi-ls")
def test_iscsi_ls_lists_both_portals_with_their_tags(server: Server) -> None:
    for portal in (0, 1):
        output = run_judge("iscsi-ls", f"iscsi://{server.portal(portal)}")
        for index, tag in ((0, 1), (1, 2)):
            assert f"Target:{TARGET} Portal:{server.portal(index)},{tag}" in output


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("server", [3], indirect=True)
def test_multipath_suite_passes_over_two_portal_groups(server: Server) -> None:
    urls = (server.url(portal=0), server.url(portal=1))
    output = run_judge(
        "iscsi-test-cu", "--dataloss", "--verbose", "--test=ALL.MultipathIO", *urls, timeout=100, check=False
    )
    assert "asserts" in output, output[-3000:]
    totals = next(line.split() for line in output.splitlines() if line.split()[:1] == ["tests"])
    assert totals[1] == totals[2] == totals[3] and int(totals[1]) > 0, output[-3000:]
    assert "[SKIPPED]" not in output, output
    assert re.search(r"Test: CompareAndWrite \.\.\.", output), output
    # The tool logs in anew when it begins, while its first sessions may still be on their way out: with a third worker
    # there is always one without any, so that the two of the tests are in different ones.
    workers = re.findall(r"worker-(\d+)\[\d+\] INFO \S+ \S+ \S+ logged in to", server.log.read_text())
    assert len(workers) == 4 and workers[2] != workers[3], workers
    wait_until(lambda: not server.sessions(), "the sessions are over")
