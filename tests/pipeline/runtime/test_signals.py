"""Signals: they are noted so that work can be saved, and nothing can keep a process from ending."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.runtime.signals import GRACE_TO_SAVE_S, Interrupted, StopRequest


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


# A process that watches its signals

PROGRAM = """
import atexit, os, signal, sys, threading, time
from pathlib import Path
from pipeline.runtime import signals
from pipeline.runtime.signals import Interrupted, StopRequest, leave, raise_if_stopped, watch_signals

def swallow_everything():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def look_now_and_then():
    while True:
        time.sleep(0.01)
        raise_if_stopped()

def replace_the_handlers():
    for number in signals.NUMBERS:
        signal.signal(number, lambda number, frame: sys.exit(number))
    swallow_everything()

def hold_a_thread():
    threading.Thread(target=swallow_everything).start()
    look_now_and_then()

def save_first():
    with StopRequest() as stop:
        while not stop.is_made:
            time.sleep(0.01)
            raise_if_stopped()
        time.sleep(0.5)
        stop.raise_if_made()

def never_save():
    with StopRequest():
        swallow_everything()

def hang_after_saving():
    with StopRequest() as stop:
        while not stop.is_made:
            time.sleep(0.01)
    swallow_everything()

def come_too_late():
    while signals.find_signal() is None:
        time.sleep(0.01)
    with StopRequest() as stop:
        assert stop.is_made

def fork():
    child = os.fork()
    if child == 0:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.1)
    raise_if_stopped()

def be_done():
    pass

if sys.argv[1] == "be_done":
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)  # called after what is registered later
watch_signals("stopped by {}\\n".format)
signals.GRACE_S = float(sys.argv[2])
print("ready", flush=True)
try:
    locals()[sys.argv[1]]()
except Interrupted as stop:
    leave(stop.number, f"ended after {stop.number}\\n")
"""


@pytest.fixture
def watching() -> "Iterator[type[Watching]]":
    """Starts such processes, and ends what a failed test leaves."""
    yield Watching
    for process in Watching.started:
        process.kill()
        process.communicate()
    Watching.started.clear()


GRACES_S = {"hold_a_thread": 3.0} | dict.fromkeys(
    ("swallow_everything", "replace_the_handlers", "never_save", "hang_after_saving"), 0.3
)
"""What cannot end by itself gets less time than a busy machine may take."""


class Watching(subprocess.Popen[str]):
    """A process that is doing one of the things above."""

    started: "list[Watching]" = []  # noqa: RUF012

    def __init__(self, what: str) -> None:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        grace_s = str(GRACES_S.get(what, 60.0))
        super().__init__([sys.executable, "-c", PROGRAM, what, grace_s], **pipes)  # type: ignore[call-overload]
        self.started.append(self)
        assert self.stdout is not None
        assert self.stdout.readline() == "ready\n"
        time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Returns how it ends, and what it says."""
        _, errors = self.communicate(timeout=300)
        return self.returncode, errors


Start = type[Watching]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["swallow_everything", "replace_the_handlers"])
def test_work_that_swallows_everything_ends_all_the_same(watching: Start, what: str, number: int) -> None:
    process = watching(what)
    process.send_signal(number)
    assert process.end() == (128 + number, f"stopped by {number}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["look_now_and_then", "hold_a_thread"])
def test_work_that_looks_ends_itself_and_says_so_once(watching: Start, what: str, number: int) -> None:
    process = watching(what)
    process.send_signal(number)
    assert process.end() == (128 + number, f"ended after {number}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_saves_gets_the_time_for_it(watching: Start, number: int) -> None:
    process = watching("save_first")
    process.send_signal(number)
    assert process.end() == (128 + number, f"ended after {number}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_does_not_wait_for_what_is_to_be_saved(watching: Start, number: int) -> None:
    process = watching("never_save")
    process.send_signal(number)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.end() == (128 + number, f"stopped by {number}\n")


def test_after_saving_the_usual_time_is_left(watching: Start) -> None:
    process = watching("hang_after_saving")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.end() == (143, "stopped by 15\n")
    assert time.monotonic() - began < GRACE_TO_SAVE_S


def test_a_request_knows_of_the_signal_before_it(watching: Start) -> None:
    process = watching("come_too_late")
    process.send_signal(signal.SIGTERM)
    assert process.end() == (0, "")


def test_a_signal_when_all_is_done_changes_nothing(watching: Start) -> None:
    assert watching("be_done").end() == (0, "")


def test_a_forked_process_has_signals_of_its_own(watching: Start) -> None:
    assert watching("fork").end() == (0, "")
