"""The executor: one outcome per item, whatever becomes of the process that works on it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.parallel import executor
from data_prep.parallel.executor import TASKS_PER_WORKER, map_unordered


def square(number: int) -> int:
    return number * number


def kill_oneself_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_at_three(number: int) -> int:
    if number == 3:
        time.sleep(60)
    return number


def die_once(path: Path) -> str:
    """Ends its process without a word, the first time."""
    if not path.exists():
        path.touch()
        os._exit(7)
    return path.name


def die(number: int) -> int:
    os._exit(7)


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is not to be had")
    return number


def process_id(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_has_one_outcome_in_any_order(workers: int) -> None:
    outcomes = list(map_unordered(square, range(40), workers=workers))
    assert sorted((outcome.item, outcome.result) for outcome in outcomes) == [(n, n * n) for n in range(40)]
    assert {outcome.reason for outcome in outcomes} == {""}


@pytest.mark.parametrize("workers", [0, 1])
def test_no_items_no_outcomes(workers: int) -> None:
    assert list(map_unordered(square, [], workers=workers)) == []


def test_zero_workers_is_this_process_and_others_are_not() -> None:
    assert [outcome.result for outcome in map_unordered(process_id, [1], workers=0)] == [os.getpid()]
    assert [outcome.result for outcome in map_unordered(process_id, [1], workers=1)] != [os.getpid()]


def test_a_killed_process_costs_only_the_item_it_had() -> None:
    outcomes = {
        outcome.item: outcome for outcome in map_unordered(kill_oneself_at_three, range(8), workers=1)
    }
    lost = outcomes.pop(3)
    assert (lost.result, lost.reason) == (None, "killed")
    assert "killed twice" in lost.message
    assert {item: outcome.result for item, outcome in outcomes.items()} == {n: n for n in range(8) if n != 3}


def test_what_crashes_once_is_tried_again(tmp_path: Path) -> None:
    (outcome,) = map_unordered(die_once, [tmp_path / "item"], workers=1)
    assert (outcome.result, outcome.reason) == ("item", "")


def test_what_crashes_twice_is_given_up() -> None:
    outcomes = list(map_unordered(die, [1, 2], workers=2))
    assert sorted(outcome.item for outcome in outcomes) == [1, 2]
    assert {outcome.message for outcome in outcomes} == {"its process ended with code 7, twice"}


def test_a_time_out_costs_only_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "TIMEOUT_S", 1.0)
    start = time.perf_counter()
    outcomes = {outcome.item: outcome for outcome in map_unordered(sleep_at_three, range(6), workers=1)}
    assert time.perf_counter() - start < 30
    lost = outcomes.pop(3)
    assert (lost.result, lost.reason, lost.message) == (None, "timeout", "it took more than 1 s, twice")
    assert {outcome.result for outcome in outcomes.values()} == {0, 1, 2, 4, 5}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_the_function_is_raised_here(workers: int) -> None:
    with pytest.raises(ValueError, match="three is not to be had"):
        list(map_unordered(fail_at_three, range(6), workers=workers))


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    outcomes = map_unordered(square, items(), workers=1)
    next(outcomes)
    assert len(taken) <= 8
    outcomes.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ahead", "expected"), [(0, TASKS_PER_WORKER), (20, 20)])
def test_the_workers_go_no_further_ahead_than_asked(ahead: int, expected: int) -> None:
    """However slow the one is who takes the outcomes: what waits for it is in memory."""
    started = []

    def items() -> Iterator[int]:
        for number in range(60):
            started.append(number)
            yield number

    outcomes = map_unordered(square, items(), workers=1, ahead=ahead)
    for num_taken in range(1, 31):
        next(outcomes)
        assert expected <= len(started) <= expected + num_taken
    outcomes.close()
