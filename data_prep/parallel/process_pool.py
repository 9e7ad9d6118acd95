"""Processes that work on one item at a time, each of which may die without harm to the others.

Each has a pipe of its own and a thread here that waits for it. They share no queue and no lock, so that a
process may be killed at any moment and costs only the item it had.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from threading import Lock
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
SECONDS_TO_END = 1.0  # of a process that has closed its pipe
TAKEN_UP, TOO_LATE = b"", b"late"  # beside pickles, which begin with their protocol
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProcessEnded(Exception):
    """A process ended under its item.

    Attributes:
        exit_code: its own, or minus the number of the signal that killed it.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the process ended with code {exit_code}")
        self.exit_code = exit_code


class ProcessPool:
    """Up to `workers` processes, started as they are needed, replaced as they end, and killed with the block.

    Ctrl-C never reaches them: a terminal sends it to all, and it is this process that answers.
    """

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._workers = [_Worker() for _ in range(workers)]
        self._free = deque(self._workers)

    def submit(self, function: Callable[[Item], Result], item: Item, *, timeout_s: float) -> "Future[Result]":
        """Returns what will become of an item: a result, or what `function` raised.

        Or `TimeoutError`, `timeout_s` after a process has taken the item up; `ProcessEnded`; or `OSError` if
        no process can be started.
        """
        return self._threads.submit(self._work, function, item, timeout_s)

    def _work(self, function: Callable[[Item], Result], item: Item, timeout_s: float) -> Result:
        worker = self._free.pop()
        try:
            return worker.work(function, item, timeout_s)
        finally:
            self._free.append(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process and this end of its pipe; used by one thread at a time, and closed by any."""

    def __init__(self) -> None:
        self._lock = Lock()  # held while the process is started or ended, never while it works
        self._is_closed = False
        self._process: BaseProcess | None = None
        self._connection: Connection[Any, Any]

    def work(self, function: Callable[[Item], Result], item: Item, timeout_s: float) -> Result:
        task = bytes(ForkingPickler.dumps((function, item)))  # a view that is in a circle upsets Python 3.13
        self._start()
        try:
            self._connection.send_bytes(task)
            message = self._connection.recv_bytes()
            if message == TAKEN_UP:
                message = self._connection.recv_bytes() if self._connection.poll(timeout_s) else TOO_LATE
        except (EOFError, OSError) as broken:
            raise ProcessEnded(self.end(SECONDS_TO_END)) from broken
        if message == TOO_LATE:
            self.end()
            raise TimeoutError
        result, error = ForkingPickler.loads(message)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Kills the process, and has no other started."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def end(self, grace_s: float = 0.0) -> int:
        """Kills the process, if it does not end by itself in time, and returns its exit code."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return 0
            process.join(grace_s)
            process.kill()
            process.join()
            while (exit_code := process.exitcode) is None:  # a start elsewhere is just reaping it
                time.sleep(0.001)
            self._connection.close()
            return exit_code

    def _start(self) -> None:
        """Sees to it that there is a living process."""
        if self._process is not None and not self._process.is_alive():
            self.end()
        with self._lock:
            if self._is_closed:
                raise ProcessEnded(-signal.SIGKILL)
            if self._process is None:
                self._connection, theirs = SPAWN.Pipe()
                with theirs:  # closed here, so that the pipe breaks when the process ends
                    process = SPAWN.Process(target=_serve, args=[theirs], daemon=True)
                    _keep_from_ctrl_c()
                    process.start()
                self._process = process


def _keep_from_ctrl_c() -> None:
    """Blocks the signal in this thread, and so in the process that it starts, from its beginning."""
    resource_tracker.ensure_running()  # else the start would do that, and unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _serve(connection: "Connection[Any, Any]") -> None:
    """Works in the process, until the pipe is closed or it is killed."""
    end_with_parent()
    with suppress(EOFError, ConnectionError):  # the other end is closed, perhaps with an answer unread
        while True:
            task = connection.recv_bytes()
            connection.send_bytes(_answer(task, partial(connection.send_bytes, TAKEN_UP)))


def _answer(task: bytes, on_start: Callable[[], None]) -> memoryview:
    """Returns a result and no error, or no result and an error, as they are sent."""
    try:
        function, item = ForkingPickler.loads(task)
        on_start()  # all that had to be imported is
        return ForkingPickler.dumps((function(item), None))
    except Exception as error:  # raised where the result is awaited
        story = traceback.format_exc()
        error.add_note(story)
        try:
            answer = ForkingPickler.dumps((None, error))
            ForkingPickler.loads(answer)
        except Exception:  # an error of a kind that cannot be sent
            return ForkingPickler.dumps((None, RuntimeError(story)))
        return answer


def end_with_parent() -> None:
    """Has the system kill this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already, and nobody will tell
        os._exit(1)
