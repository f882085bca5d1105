"""One drawing at a time; the student's comes first, though the teacher's takes longer."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from fewstep.cli.web.turns import Turns
from fewstep.errors import FewstepError

WAIT = 60  # seconds; a busy machine must not fail a test


def test_a_long_drawing_pauses_for_an_urgent_one() -> None:
    turns, seen = Turns(), []
    begun = Event()

    def teacher() -> None:
        with turns.turn(urgent=False):
            begun.set()
            while "student" not in seen:
                turns.pause()
            seen.append("teacher")

    def student() -> None:
        with turns.turn(urgent=True):
            seen.append("student")

    threads = [Thread(target=teacher, daemon=True), Thread(target=student, daemon=True)]
    threads[0].start()
    assert begun.wait(WAIT)
    threads[1].start()
    for thread in threads:
        thread.join(WAIT)
    assert seen == ["student", "teacher"]


def test_no_drawing_goes_on_once_the_page_is_closed() -> None:
    turns = Turns()
    begun, ends = Event(), []

    def draw() -> None:
        try:
            with turns.turn(urgent=False):
                begun.set()
                while True:
                    turns.pause()
        except FewstepError as error:
            ends.append(str(error))

    thread = Thread(target=draw, daemon=True)
    thread.start()
    assert begun.wait(WAIT)
    turns.close(WAIT)
    thread.join(WAIT)
    assert "the page is closed" in ends[0]
    with pytest.raises(FewstepError, match="is closed"), turns.turn(urgent=True):
        pass
