"""Signals: they are noted so that work can be saved; a second Ctrl-C interrupts as usual."""

import os
import signal

import pytest

from pipeline.runtime.signals import Interrupted, StopRequest


class Second(Exception):
    """What the handler before does."""


@pytest.fixture(autouse=True)
def handlers_before(monkeypatch: pytest.MonkeyPatch):
    """Both signals raise `Second`; what pytest had comes back afterwards."""

    def raise_second(number, frame) -> None:
        raise Second

    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, raise_second) for number in numbers}
    yield {number: signal.getsignal(number) for number in numbers}
    for number, handler in old.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_without_a_signal_nothing_happens() -> None:
    with StopRequest() as stop:
        assert not stop.is_made
        stop.raise_if_made()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_raised_where_it_is_safe(number: int, exit_code: int) -> None:
    with StopRequest() as stop:
        send(number)
        assert stop.is_made
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_made()
    assert caught.value.exit_code == exit_code
    assert str(caught.value) == signal.Signals(number).name


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_interrupts_at_once(first: int) -> None:
    with StopRequest():
        send(first)
        with pytest.raises(Second):
            send(signal.SIGINT)


@pytest.mark.parametrize(("first", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sigterm_that_comes_again_changes_nothing(first: int, exit_code: int) -> None:
    with StopRequest() as stop:
        send(first)
        send(signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_made()
    assert caught.value.exit_code == exit_code


def test_the_handlers_come_back_however_the_work_ends(handlers_before) -> None:
    for error in (None, RuntimeError):
        try:
            with StopRequest():
                assert signal.getsignal(signal.SIGINT) != handlers_before[signal.SIGINT]
                if error:
                    raise error
        except RuntimeError:
            pass
        assert {number: signal.getsignal(number) for number in handlers_before} == handlers_before
