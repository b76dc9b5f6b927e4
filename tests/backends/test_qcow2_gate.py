"""Who is inside an image."""

from __future__ import annotations

import threading

from iscsid_backends.qcow2_gate import Gate


def test_age_is_gone_when_all_who_came_in_it_or_before_have_left() -> None:
    gate = Gate()
    first = gate.enter()
    age = gate.next_age()
    second = gate.enter()
    assert not gate.gone(age)
    gate.leave(first)
    assert gate.gone(age)
    assert not gate.gone(gate.next_age())
    gate.leave(second)


def test_operation_in_the_loop_keeps_every_age() -> None:
    gate = Gate()
    age = gate.next_age()
    with gate.now:
        assert not gate.gone(age)
    assert gate.gone(age)


def test_who_is_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    gate = Gate()
    inside, order = gate.enter(), list[str]()
    began = threading.Event()

    def alone() -> None:
        began.set()
        with gate.alone():
            order.append("alone")
            assert gate.gone(gate.next_age())

    def other() -> None:
        age = gate.enter()
        order.append("other")
        gate.leave(age)

    first = threading.Thread(target=alone)
    first.start()
    began.wait(10)
    while not gate._closed:
        threading.Event().wait(0.001)
    assert not gate.now.acquire(blocking=False)
    second = threading.Thread(target=other)
    second.start()
    order.append("inside")
    gate.leave(inside)
    first.join(10)
    second.join(10)
    assert order == ["inside", "alone", "other"]
    assert gate.now.acquire(blocking=False)


def test_two_want_to_be_alone_and_take_turns() -> None:
    gate, count = Gate(), 0

    def work() -> None:
        nonlocal count
        for _ in range(50):
            with gate.alone():
                count += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert count == 150
