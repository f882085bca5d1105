"""The study of states on the exact mixture: what is trained, and what the ratios are of."""

from __future__ import annotations

from typing import Any

import pytest
from studies.mixture_states import KINDS, WS
from tests.distill.toy import Net

from studies import mixture_states


def test_a_seed_is_one_line_per_kind_of_states(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mixture_states, "REFERENCE_STEPS", 16)
    mixture_states.main(["3", "--updates", "2", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [["3", *kinds] for kinds in KINDS]
    ratios = [[float(value) for value in line[3:]] for line in lines]
    assert all(len(row) == len(WS) for row in ratios)
    # Students that are hardly trained are far from the teacher.
    assert all(ratio > 1 for row in ratios for ratio in row[:2])


def test_a_student_equal_to_the_teacher_has_a_ratio_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = mixture_states.data().guided()
    trained: list[tuple[str, int]] = []

    def fit(student: Net, problem: Any, data: Any, updates: int, seed: int, lr: float) -> Any:
        del student, data, lr
        trained.append((type(problem).__name__, updates))
        return teacher

    monkeypatch.setattr(mixture_states, "REFERENCE_STEPS", 16)
    monkeypatch.setattr(mixture_states, "fit", fit)
    found = list(mixture_states.compare(0, 20, 10))
    assert [(first, second) for first, second, _ in found] == list(KINDS)
    assert all(ratios == [1.0] * len(WS) for _, _, ratios in found)
    # One stage one for each kind of its states, and two students for each kind of theirs.
    assert [updates for _, updates in trained].count(20) == 2
    assert [updates for _, updates in trained].count(10) == 6
