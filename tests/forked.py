"""Commands in processes of their own that need not import anything: all are forked from one that has.

Importing torch and timm takes seconds, many times what most of these commands do. Such a process has its own
number, files, signals and end, starts others as `python -m pipeline` does, and knows nothing of pytest. All
share one hash seed, so what is expected of them comes from a process that has another. What is about the
start itself, or about threads and libraries as they are loaded, takes `subprocess`.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import NoReturn, Self

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("pipeline.cli.app", "pipeline.demo", "pipeline.experiment", "pipeline.inference.predict_test_set"),
    "torch.distributed.run",
)
MOST_BYTES = 2**17  # of a request
PATIENCE_S = 300.0


class Forked:
    """A process such as `subprocess.Popen` starts, of Python with `-m MODULE` or `-c PROGRAM`."""

    def __init__(self, *arguments: str, cwd: Path | None = None, new_session: bool = False) -> None:
        self.args = arguments
        self.returncode: int | None = None
        pipes = [os.pipe() for _ in range(2)]
        self._outputs = {reader: b"" for reader, _ in pipes}
        self._open = list(self._outputs)
        self._answers, theirs = socket.socketpair()
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "new_session": new_session}
        request["environment"] = os.environ | {"OMP_NUM_THREADS": "1"}
        with theirs:
            files = [theirs.fileno(), *(writer for _, writer in pipes)]
            socket.send_fds(_start_server()[0], [json.dumps(request).encode()], files)
        for _, writer in pipes:
            os.close(writer)
        self.pid = self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop())
        self.wait()

    def poll(self) -> int | None:
        """Returns how it has ended, if it has."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: if it takes longer.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._receive())
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits until it and all that it has forked have ended; returns what they have printed.

        Raises:
            subprocess.TimeoutExpired: if nothing comes for so long.
        """
        while self._open:
            ready = select.select(self._open, [], [], timeout)[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for pipe in ready:
                if content := os.read(pipe, 2**16):
                    self._outputs[pipe] += content
                else:
                    self._open.remove(pipe)
                    os.close(pipe)
        self.wait(timeout)
        stdout, stderr = (content.decode() for content in self._outputs.values())
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _receive(self) -> int:
        content = self._answers.recv(4, socket.MSG_WAITALL)
        assert len(content) == 4, "the server of processes has died"
        return int.from_bytes(content, "little")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs such a process to its end, as `subprocess.run` does with its output captured.

    Raises:
        subprocess.TimeoutExpired: if it says nothing and does not end for long.
    """
    return finish(Forked(*arguments, cwd=cwd))


def finish(process: Forked) -> subprocess.CompletedProcess[str]:
    """Waits for its end, and tells how it was.

    Raises:
        subprocess.TimeoutExpired: if it says nothing and does not end for long.
    """
    with process:
        try:
            stdout, stderr = process.communicate(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


TORCHRUN = """
from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch
from tests.forked import become

def launch(config, entrypoint):
    config.start_method = "fork"
    return elastic_launch(config, become)

run.elastic_launch = launch
run.main()
"""


def start_torchrun(*arguments: str) -> Forked:
    """Starts torchrun, which forks its ranks too."""
    return Forked("-c", TORCHRUN, *arguments)


@functools.cache
def _start_server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Starts the process that has imported all; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(_end_server, ours, server)
    return ours, server


def _end_server(ours: socket.socket, server: subprocess.Popen[bytes]) -> None:
    ours.close()
    server.wait()


# In the server


def _serve(requests: socket.socket) -> dict:
    """Forks a process for each request; only in these processes it returns, with what to do there."""
    while True:
        content, files, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
        if not content:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _fork_and_tell(json.loads(content), *files)
        for file in files:
            os.close(file)
        while _is_one_over():
            pass


def _is_one_over() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _fork_and_tell(request: dict, answers: int, stdout: int, stderr: int) -> dict:
    """Forks the process itself and tells its number and its end."""
    if pid := os.fork():
        os.write(answers, pid.to_bytes(4, "little"))
        os.write(answers, os.waitpid(pid, 0)[1].to_bytes(4, "little"))
        os._exit(0)
    if request["new_session"]:
        os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for file in (answers, stdout, stderr):
        os.close(file)
    return request


def become(*arguments: str) -> None:
    """Does what Python does with such arguments, `-u` or not before them."""
    what, *others = arguments if arguments[0] != "-u" else arguments[1:]
    if what == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *others[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(others[0], "<string>", "exec"), main.__dict__)  # noqa: S102  the tests' own programs
    else:
        sys.argv = [what, *others]
        runpy.run_path(what, run_name="__main__")


def become_and_end(*arguments: str) -> NoReturn:
    """Does that and ends this process as Python does, its threads and exit functions too, but frees nothing.

    A forked process would copy the memory first that it shares and is to free, for a third of a second.
    """
    code: object = None
    try:
        become(*arguments)
    except SystemExit as ended:
        code = ended.code
    if code is None or isinstance(code, int):
        threading._shutdown()
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):  # of which Python speaks
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
    sys.exit(code)


def import_all() -> None:
    """Imports what takes long, once for all that are forked from here."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # so that the forked ones share these pages


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends this one
    import_all()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    become_and_end(*request["arguments"])
