"""Processes that work on one item at a time. Knows no images.

Each has a pipe of its own and a thread here that waits for it. They share no queue and no lock, so that a
process may be killed at any moment and costs only the item it had.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
SECONDS_TO_END = 1.0  # of a process that has closed its pipe
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
        self._threads = ThreadPoolExecutor(workers, initializer=_keep_from_ctrl_c)
        self._workers = [_Worker() for _ in range(workers)]
        self._free = SimpleQueue[_Worker]()
        for worker in self._workers:
            self._free.put(worker)

    def submit(self, function: Callable[[Item], Result], item: Item, *, timeout_s: float) -> "Future[Result]":
        """Returns what will become of an item: a result, or what `function` raised.

        Or `TimeoutError`, `timeout_s` after a process has taken the item up; or `ProcessEnded`.
        """
        return self._threads.submit(self._work, function, item, timeout_s)

    def _work(self, function: Callable[[Item], Result], item: Item, timeout_s: float) -> Result:
        worker = self._free.get()
        try:
            return worker.work(function, item, timeout_s)
        finally:
            self._free.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()


class _Worker:
    """A process and this end of its pipe; used by one thread at a time, and closed by any."""

    def __init__(self) -> None:
        self._lock = Lock()  # held while the process is started or ended, never while it works
        self._is_closed = False
        self._process: Any = None
        self._connection: Connection[Any, Any]

    def work(self, function: Callable[[Item], Result], item: Item, timeout_s: float) -> Result:
        self._start()
        try:
            self._connection.send((function, item))
            self._connection.recv()  # it has taken the item up, whatever it had to import for that
            in_time = self._connection.poll(timeout_s)
            answer: Any = self._connection.recv() if in_time else None
        except (EOFError, OSError) as broken:
            raise ProcessEnded(self._end(SECONDS_TO_END)) from broken
        if not in_time:
            self._end(0)
            raise TimeoutError
        result, error = answer
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Kills the process, and has no other started."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
                self._process.join()

    def _start(self) -> None:
        """Sees to it that there is a living process."""
        if self._process is not None and not self._process.is_alive():
            self._end(0)
        with self._lock:
            if self._is_closed:
                raise ProcessEnded(-signal.SIGKILL)
            if self._process is None:
                self._connection, theirs = SPAWN.Pipe()
                self._process = SPAWN.Process(target=_serve, args=[theirs], daemon=True)
                self._process.start()
                theirs.close()  # so that the pipe breaks when the process ends

    def _end(self, grace_s: float) -> int:
        with self._lock:
            process, self._process = self._process, None
            process.join(grace_s)
            process.kill()
            process.join()
            self._connection.close()
            return process.exitcode


def _keep_from_ctrl_c() -> None:
    """Blocks the signal in this thread, and so in the processes that it starts, from their beginning."""
    resource_tracker.ensure_running()  # by each process that is started, and it would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _serve(connection: "Connection[Any, Any]") -> None:
    """Works in the process, until the pipe is closed or it is killed."""
    end_with_parent()
    while True:
        try:
            function, item = connection.recv()
        except EOFError:
            return
        connection.send(None)
        try:
            connection.send((function(item), None))
        except Exception as error:  # raised where the result is awaited
            error.add_note(traceback.format_exc())
            connection.send((None, error))


def end_with_parent() -> None:
    """Has the system kill this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already, and nobody will tell
        os._exit(1)
