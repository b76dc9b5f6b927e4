"""A change of a running server: all or nothing, in order, and held up by no worker that is dead."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.block.device import Sharing
from iscsid.daemon import reloader
from iscsid.daemon.errors import StartError
from iscsid.daemon.media import Media
from iscsid.daemon.reloader import CLOSE_SECONDS, OPEN_SECONDS, Answer, Reloader
from iscsid.errors import BlockError, ConfigError, Fault, Problem
from iscsid.shared.figures import FigureTable
from iscsid.shared.messages import Commit, Held, Hold, Lend, Message, Revise, Revised, Undo, Work, Worked
from iscsid.specs import LayerSpec, LunSpec, ServerSpec, TargetSpec

FIRST = LunSpec(0, "file", {"path": "/a", "size": 512}, serial="A")
OLD = ServerSpec(targets=(TargetSpec("disk", (FIRST,)),))
SECOND = LunSpec(1, "file", {"path": "/b", "size": 512}, serial="B")
ADDED = ServerSpec(targets=(TargetSpec("disk", (FIRST, SECOND)),))


class Plugins(SimpleNamespace):
    """As much as a reload needs; ``log`` is what was done to media. A back end "lonely" is for one process."""

    arguments = None

    def __init__(self) -> None:
        size = SimpleNamespace(name="size")
        backends = {
            "file": SimpleNamespace(options=(size,), verbs=()),
            "lonely": SimpleNamespace(
                options=(), verbs=(SimpleNamespace(name="resize"), SimpleNamespace(name="snapshot"))
            ),
        }
        layers = {"cache": SimpleNamespace(keeps=False), "cow": SimpleNamespace(keeps=True)}
        super().__init__(log=[], refuse="", backends=backends, layers=layers)

    def implements(self, backend: str, hook: str) -> bool:
        return backend == "file" and hook == "iscsid_resize"

    def role_under(self, layers: Any, role: str) -> str:
        return role

    def prepare(self, backend: str, options: Any, role: str = "worker") -> Any:
        if self.refuse == options["path"]:
            raise BlockError(Fault.INVALID, "planted")
        self.log.append(("prepare", options["path"]))
        return dict(options)

    def resize(self, backend: str, options: Any, size: int) -> Any:
        if size < options["size"]:
            raise BlockError(Fault.INVALID, "never cut")
        self.log.append(("resize", size))
        return {**options, "size": size}

    def release(self, backend: str, options: Any) -> None:
        self.log.append(("release", options["path"]))

    def prepare_layers(self, layers: Any) -> Any:
        made = [(name, dict(options)) for name, options in layers]
        self.log += [("layer", name) for name, _ in made]
        return made

    def release_layers(self, layers: Any) -> None:
        self.log += [("unlayer", name) for name, _ in layers]

    def sharing(self, backend: str, options: Any, layers: Any = ()) -> Sharing:
        return Sharing.EXCLUSIVE_OWNER if backend == "lonely" else Sharing.SHARED


class Child(SimpleNamespace):
    """Told apart by what it is, not by what it holds."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Fleet:
    """Workers that remember what they were told."""

    def __init__(self, count: int) -> None:
        self.children = [Child(index=index, told=[], killed="") for index in range(count)]
        self.unready: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.children + self.unready)

    def ready(self) -> list[Any]:
        return self.children

    def send(self, child: Any, message: Message, fd: int | None = None) -> None:
        if fd is not None:
            os.close(fd)
        child.told.append(message)

    def kill(self, child: Any, reason: str = "") -> None:
        child.killed = reason


class Rig:
    def __init__(self) -> None:
        self.plugins = Plugins()
        self.fleet = Fleet(2)
        self.settled: list[set[str]] = []
        self.admitted: list[set[str]] = []
        self.admit_error: Exception | None = None
        self.sanitizing: set[str] = set()
        size = FigureTable.size(2, ["A"], 8)
        self.server: Any = SimpleNamespace(
            spec=OLD,
            plugins=self.plugins,
            owners={},
            count=2,
            media=Media(OLD, self.plugins),  # type: ignore[arg-type]
            fleet=self.fleet,
            figures=FigureTable(memoryview(bytearray(size)), 2, ["A"], 8),
            bound=lambda spec: spec,
            arbiter=SimpleNamespace(
                admit=self._admit,
                settle=lambda places, now: self.settled.append(set(places)),
                sanitizing=lambda unit: unit in self.sanitizing,
            ),
        )
        self.new: Any = ADDED
        self.reloader = Reloader(self.server, self._reread)
        self.answers: list[Answer] = []
        self.plugins.log.clear()

    def _reread(self) -> Any:
        if isinstance(self.new, Exception):
            raise self.new
        return self.new, self.plugins

    def _admit(self, places: Any, now: float) -> None:
        if self.admit_error is not None:
            raise self.admit_error
        self.admitted.append(set(places))

    def reload(self) -> None:
        self.reloader.reload(self.answers.append, 0.0)

    def say(self, *indices: int, done: bool = False, error: str = "", number: int = 1) -> None:
        for index in indices:
            self.reloader.on_answer(self.fleet.children[index], Revised(number, done, error), 0.0)

    def told(self, index: int) -> list[type]:
        return [type(message) for message in self.fleet.children[index].told]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_change_is_in_force_when_every_worker_has_opened_it_and_answered_when_all_have_closed(rig: Rig) -> None:
    rig.reload()
    assert rig.told(0) == rig.told(1) == [Revise]
    rig.say(0)
    assert rig.server.spec == OLD and rig.told(0) == [Revise]
    rig.say(1)
    assert rig.server.spec == ADDED
    assert rig.told(0) == rig.told(1) == [Revise, Commit]
    assert (rig.admitted, rig.settled) == ([{"B"}], [{"A", "B"}])
    assert ("disk", 1) in rig.server.media.options
    assert not rig.answers
    rig.say(0, 1, done=True)
    assert rig.answers == [Answer((("target disk lun 1", "added"),))]


def test_media_that_go_are_released_when_every_worker_has_closed_them(rig: Rig) -> None:
    rig.new = ServerSpec()
    rig.reload()
    rig.say(0, 1)
    rig.say(0, done=True)
    assert rig.plugins.log == []
    rig.say(1, done=True)
    assert rig.plugins.log == [("release", "/a")]
    assert rig.server.media.options == {}


@pytest.mark.parametrize("when", ["prepare", "open", "admit", "late"])
def test_failure_undoes_everything(rig: Rig, when: str) -> None:
    rig.plugins.refuse = "/b" if when == "prepare" else ""
    rig.admit_error = StartError("planted") if when == "admit" else None
    rig.reload()
    if when == "open":
        rig.say(0)
        rig.say(1, error="planted")
    elif when == "admit":
        rig.say(0, 1)
    elif when == "late":
        rig.say(1)
        rig.reloader.expire(OPEN_SECONDS - 0.1)
        assert not rig.answers
        rig.reloader.expire(OPEN_SECONDS)
    (answer,) = rig.answers
    assert not answer.rows and ("worker 0" if when == "late" else "planted") in answer.problems[0]
    if when != "prepare":
        assert rig.told(0) == rig.told(1) == [Revise, Undo]
        assert rig.plugins.log == [("prepare", "/b"), ("release", "/b")]
    assert rig.server.spec == OLD and set(rig.server.media.options) == {("disk", 0)}
    assert not rig.settled


def test_configuration_that_is_wrong_tells_every_problem_and_changes_nothing(rig: Rig) -> None:
    rig.new = ConfigError("x.toml", [Problem("target[0]", "name", "is missing"), Problem("server", "zebra", "unknown")])
    rig.reload()
    (answer,) = rig.answers
    assert ["is missing" in answer.problems[0], "zebra" in answer.problems[1]] == [True, True]
    assert rig.told(0) == []


def test_server_without_a_file_says_so(rig: Rig) -> None:
    Reloader(rig.server, None).reload(rig.answers.append, 0.0)
    assert "no configuration file" in rig.answers[0].problems[0]


def test_same_configuration_is_answered_at_once(rig: Rig) -> None:
    rig.new = replace(OLD, workers=9)
    rig.reload()
    assert rig.answers == [Answer((("server workers", "needs a restart"),))]
    assert rig.told(0) == []


def test_dead_worker_is_waited_for_no_longer(rig: Rig) -> None:
    rig.reload()
    rig.say(0)
    rig.reloader.on_death(rig.fleet.children[1], 0.0)
    assert rig.told(0) == [Revise, Commit]
    rig.say(0, done=True)
    assert len(rig.answers) == 1


def test_worker_that_becomes_ready_meanwhile_is_asked_and_one_that_does_not_is_replaced(rig: Rig) -> None:
    rig.reload()
    born, unborn = (Child(index=9, told=[], killed="") for _ in range(2))
    rig.fleet.unready = [unborn]
    rig.fleet.children.append(born)
    rig.reloader.on_ready(born, 0.0)
    rig.say(0, 1)
    assert rig.server.spec == OLD
    rig.say(2)
    assert [type(message) for message in born.told] == [Revise, Commit]
    assert unborn.killed and not born.killed


def test_worker_that_does_not_close_in_time_is_killed(rig: Rig) -> None:
    rig.reload()
    rig.say(0, 1)
    rig.say(0, done=True)
    rig.reloader.expire(CLOSE_SECONDS)
    assert rig.fleet.children[1].killed and not rig.fleet.children[0].killed
    rig.reloader.on_death(rig.fleet.children[1], CLOSE_SECONDS)
    assert len(rig.answers) == 1
    assert rig.reloader.deadline() is None


def test_changes_wait_for_each_other(rig: Rig) -> None:
    rig.reload()
    rig.reload()
    rig.say(0, 1)
    rig.say(0, 1, done=True)
    assert rig.answers == [Answer((("target disk lun 1", "added"),)), Answer()]  # the second finds nothing different


def test_resize_keeps_the_medium_and_has_every_path_of_it_grow(rig: Rig) -> None:
    rig.server.spec = both = ServerSpec(targets=(*OLD.targets, TargetSpec("again", (FIRST,))))
    rig.server.media = Media(both, rig.plugins)  # type: ignore[arg-type]
    rig.plugins.log.clear()
    rig.reloader.reopen("disk", 0, rig.answers.append, 0.0, 1024)
    rig.say(0, 1)
    rig.say(0, 1, done=True)
    assert [lun.options["size"] for target in rig.server.spec.targets for lun in target.luns] == [1024, 1024]
    assert rig.plugins.log == [("resize", 1024), ("resize", 1024)]
    assert [how for _, how in rig.answers[0].rows] == ["resized", "resized"]


def test_smaller_size_and_unknown_lun_are_refused(rig: Rig) -> None:
    for target, lun, words in (("disk", 0, "never cut"), ("disk", 5, "no LUN 5; it has 0"), ("x", 0, "no target x")):
        rig.reloader.reopen(target, lun, rig.answers.append, 0.0, 100)
        assert words in rig.answers[-1].problems[0]


def test_lun_for_one_process_does_not_come_to_a_target_that_all_serve(rig: Rig) -> None:
    rig.new = ServerSpec(targets=(TargetSpec("disk", (FIRST, replace(SECOND, backend="lonely"))),))
    rig.reload()
    assert "needs a restart" in rig.answers[0].problems[0]


def test_new_target_for_one_process_gets_an_owner(rig: Rig) -> None:
    rig.new = ServerSpec(targets=(*OLD.targets, TargetSpec("own", (replace(SECOND, backend="lonely"),))))
    rig.reload()
    rig.say(0, 1)
    assert rig.server.owners == {"own": 0}


def test_descriptors_go_before_the_revision(rig: Rig) -> None:
    from iscsid.plugin import Descriptor

    reader, writer = os.pipe()
    rig.plugins.prepare = lambda backend, options, role="worker": {**options, "claim": Descriptor(writer)}
    rig.reload()
    assert rig.told(0) == [Lend, Revise]
    os.close(reader)
    os.close(writer)


# A medium that one process has.

LONELY = replace(FIRST, backend="lonely", options={"path": "/a"})
ALONE = ServerSpec(targets=(TargetSpec("disk", (LONELY,)),))


@pytest.fixture
def alone(rig: Rig) -> Rig:
    """Worker 1 has the disk."""
    rig.server.spec = ALONE
    rig.server.owners = {"disk": 1}
    rig.server.media = Media(ALONE, rig.plugins)  # type: ignore[arg-type]
    rig.plugins.log.clear()
    return rig


def held(rig: Rig, *indices: int, error: str = "", number: int = 1) -> None:
    for index in indices:
        rig.reloader.on_answer(rig.fleet.children[index], Held(number, error), 0.0)


def worked(rig: Rig, answer: str = "{}", error: str = "", number: int = 1) -> None:
    rig.reloader.on_answer(rig.fleet.children[1], Worked(number, answer, error), 0.0)


def snapshot(rig: Rig, action: str = "create", name: str = "x") -> None:
    rig.reloader.snapshot("disk", 0, action, name, rig.answers.append, 0.0)


def test_snapshot_is_taken_by_the_owner_when_every_worker_has_closed_the_medium(alone: Rig) -> None:
    snapshot(alone)
    assert alone.told(0) == alone.told(1) == [Hold]
    held(alone, 0)
    assert alone.told(1) == [Hold]
    held(alone, 1)
    assert (alone.told(0), alone.told(1)) == ([Hold], [Hold, Work])
    asked = alone.fleet.children[1].told[-1]
    assert (asked.verb, json.loads(asked.arguments)) == ("snapshot", {"action": "create", "name": "x"})
    worked(alone, '{"snapshots": [1]}')
    assert alone.told(1) == [Hold, Work, Revise]
    alone.say(0, 1)
    assert alone.told(0) == [Hold, Revise, Commit]
    assert not alone.answers
    alone.say(0, 1, done=True)
    assert alone.answers == [Answer((("target disk lun 0", "snapshot x created"),), facts={"snapshots": [1]})]
    assert alone.plugins.log == []  # it is prepared as it was


@pytest.mark.parametrize("step", ["hold", "work", "open", "late"])
def test_failure_on_the_way_opens_the_medium_again(alone: Rig, step: str) -> None:
    snapshot(alone)
    held(alone, 0)
    if step == "hold":
        held(alone, 1, error="planted")
    else:
        held(alone, 1)
        if step == "work":
            worked(alone, error="planted")
        elif step == "late":
            alone.reloader.expire(OPEN_SECONDS)
        else:
            worked(alone)
            alone.say(0, 1, error="planted")
    (answer,) = alone.answers
    words = "not done within 30 seconds: worker 1" if step == "late" else "planted"
    assert not answer.rows and answer.problems[0].startswith(words)
    assert ("is done to the medium" in answer.problems[0]) == (step == "open")
    assert alone.told(0)[-1] == alone.told(1)[-1] == Undo
    assert alone.server.spec == ALONE and alone.reloader.deadline() is None


def test_owner_that_dies_at_the_work_may_have_done_it_or_not(alone: Rig) -> None:
    snapshot(alone)
    held(alone, 0, 1)
    alone.reloader.on_death(alone.fleet.children[1], 0.0)
    assert "worker 1 died" in alone.answers[0].problems[0]
    assert alone.told(0) == [Hold, Undo]


def test_owner_that_dies_before_the_work_is_missed(alone: Rig) -> None:
    snapshot(alone)
    held(alone, 0)
    owner = alone.fleet.children.pop()
    alone.reloader.on_death(owner, 0.0)
    assert "about to be replaced" in alone.answers[0].problems[0]


def test_owner_that_dies_after_the_work_is_not_waited_for(alone: Rig) -> None:
    snapshot(alone)
    held(alone, 0, 1)
    worked(alone)
    alone.reloader.on_death(alone.fleet.children.pop(), 0.0)
    alone.say(0)
    alone.say(0, done=True)
    assert alone.answers[0].rows == (("target disk lun 0", "snapshot x created"),)


def test_worker_that_becomes_ready_on_the_way_closes_and_opens_as_well(alone: Rig) -> None:
    snapshot(alone)
    held(alone, 0, 1)
    worked(alone)
    born = Child(index=9, told=[], killed="")
    alone.fleet.children.append(born)
    alone.reloader.on_ready(born, 0.0)
    assert [type(message) for message in born.told] == [Hold, Revise]
    alone.say(0, 1)
    held(alone, 2)
    assert alone.told(0) == [Hold, Revise]
    alone.say(2)
    assert alone.told(0) == [Hold, Revise, Commit]


def test_list_holds_nothing_and_changes_nothing(alone: Rig) -> None:
    snapshot(alone, "list", "")
    assert (alone.told(0), alone.told(1)) == ([], [Work])
    worked(alone, '{"snapshots": []}')
    assert alone.answers == [Answer(facts={"snapshots": []})]
    assert alone.told(1) == [Work, Undo]
    assert alone.plugins.log == []


def test_back_end_without_snapshots_is_named(rig: Rig) -> None:
    snapshot(rig)
    assert rig.answers[0].problems == ("target disk lun 0: the back end file has no snapshots",)
    assert rig.told(0) == []


def test_other_data_are_told_after_going_back_only(alone: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(reloader, "write", lambda revision: sent.append(revision) or (os.open("/dev/null", 0), []))
    for number, action in enumerate(("create", "apply"), 1):
        snapshot(alone, action)
        held(alone, 0, 1, number=number)
        worked(alone, number=number)
        alone.say(0, 1, number=number)
        alone.say(0, 1, number=number, done=True)
    assert [revision.other for revision in sent[::2]] == [frozenset(), {("disk", 0)}]
    assert [revision.stays for revision in sent] == [{("disk", 0)}] * 4


@pytest.mark.parametrize("cut", [False, True])
def test_medium_of_one_process_is_resized_by_its_owner(alone: Rig, cut: bool) -> None:
    alone.reloader.reopen("disk", 0, alone.answers.append, 0.0, 1024, cut)
    held(alone, 0, 1)
    asked = alone.fleet.children[1].told[-1]
    assert (asked.verb, json.loads(asked.arguments)) == ("resize", {"size": 1024, "shrink": cut})
    worked(alone)
    alone.say(0, 1)
    alone.say(0, 1, done=True)
    assert alone.answers[0].rows == (("target disk lun 0", "resized"),)
    assert alone.server.spec == ALONE


def test_shared_medium_is_cut_by_one_when_all_have_closed_it(rig: Rig) -> None:
    rig.reloader.reopen("disk", 0, rig.answers.append, 0.0, 100, True)
    held(rig, 0, 1)
    assert (rig.told(0), rig.told(1)) == ([Hold, Work], [Hold])
    rig.reloader.on_answer(rig.fleet.children[0], Worked(1, "{}"), 0.0)
    rig.say(0, 1)
    rig.say(0, 1, done=True)
    assert rig.server.spec.targets[0].luns[0].options["size"] == 100
    assert rig.server.media.options["disk", 0]["size"] == 100
    assert rig.plugins.log == []  # it was not prepared again, and a worker has cut it


def test_medium_of_one_process_is_loaded_again_without_work(alone: Rig) -> None:
    alone.reloader.look("A", alone.answers.append, 0.0)
    held(alone, 0, 1)
    assert alone.told(1) == [Hold, Revise]
    alone.say(0, 1)
    alone.say(0, 1, done=True)
    assert alone.answers[0].rows == (("target disk lun 0", "loaded"),)


def layered(rig: Rig, layer: str) -> None:
    spec = ServerSpec(targets=(TargetSpec("disk", (replace(LONELY, layers=(LayerSpec(layer, {}),)),)),))
    rig.server.spec = spec
    rig.server.media = Media(spec, rig.plugins)  # type: ignore[arg-type]
    rig.plugins.log.clear()


@pytest.mark.parametrize("well", [True, False])
def test_what_a_layer_knows_of_the_data_is_forgotten_with_them(alone: Rig, well: bool) -> None:
    layered(alone, "cache")
    snapshot(alone, "apply")
    held(alone, 0, 1)
    worked(alone, error="" if well else "planted")
    if well:
        alone.say(0, 1)
        alone.say(0, 1, done=True)
    assert alone.plugins.log == [("layer", "cache"), ("unlayer", "cache")]


def test_layer_keeps_what_it_has_where_the_data_stay(alone: Rig) -> None:
    layered(alone, "cow")
    snapshot(alone)
    held(alone, 0, 1)
    worked(alone)
    alone.say(0, 1)
    alone.say(0, 1, done=True)
    assert alone.answers[0].rows and alone.plugins.log == []


@pytest.mark.parametrize("what", ["apply", "resize", "size"])
def test_layer_that_belongs_to_the_data_forbids_others(alone: Rig, what: str) -> None:
    layered(alone, "cow")
    if what == "apply":
        snapshot(alone, "apply")
    else:
        alone.reloader.reopen("disk", 0, alone.answers.append, 0.0, 1024 if what == "resize" else None)
    assert "its layer cow keeps what belongs to the data" in alone.answers[0].problems[0]
    assert alone.told(1) == [] and alone.plugins.log == []


def test_reload_passes_a_medium_of_one_process_on(alone: Rig) -> None:
    alone.new = ServerSpec(targets=(TargetSpec("disk", (replace(LONELY, lun=3),)),))
    alone.reload()
    assert alone.told(1) == [Hold]
    assert json.loads(alone.fleet.children[1].told[0].luns) == [["disk", 0]]
    held(alone, 0, 1)
    alone.say(0, 1)
    alone.say(0, 1, done=True)
    assert not alone.answers[0].problems and set(alone.server.media.options) == {("disk", 3)}


def verbs(rig: Rig, *names: str) -> None:
    rig.plugins.backends["lonely"].verbs = tuple(SimpleNamespace(name=name) for name in names)


def test_back_end_that_clones_does_it_while_the_medium_is_closed(alone: Rig) -> None:
    verbs(alone, "clone")
    alone.reloader.clone("disk", 0, "/new", alone.answers.append, 0.0)
    held(alone, 0, 1)
    asked = alone.fleet.children[1].told[-1]
    assert (asked.verb, json.loads(asked.arguments)) == ("clone", {"to": "/new"})
    worked(alone)
    alone.say(0, 1)
    alone.say(0, 1, done=True)
    assert alone.answers[0].rows == (("target disk lun 0", "cloned into /new"),)


def test_back_end_with_snapshots_is_cloned_beside_the_server(alone: Rig) -> None:
    verbs(alone, "clone", "snapshot")
    alone.reloader.clone("disk", 0, "/new", alone.answers.append, 0.0)
    assert alone.answers == [Answer(facts={"medium": {"backend": "lonely", "options": {"path": "/a"}}})]
    assert alone.told(1) == []


def test_back_end_that_cannot_be_cloned_is_named_with_what_to_do(alone: Rig) -> None:
    alone.reloader.clone("disk", 0, "/new", alone.answers.append, 0.0)
    assert "the back end lonely cannot be cloned in use" in alone.answers[0].problems[0]
    assert "iscsid disk copy" in alone.answers[0].problems[0]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_lun_under_sanitize_is_left_alone(rig: Rig, when: str) -> None:
    rig.new = ServerSpec()
    if when == "before":
        rig.sanitizing.add("A")
    rig.reload()
    if when == "meanwhile":
        rig.sanitizing.add("A")
        rig.say(0, 1)
    assert rig.answers[0].problems == ("target disk, lun 0: a SANITIZE is under way",)
    assert rig.told(0) == ([Revise, Undo] if when == "meanwhile" else [])
