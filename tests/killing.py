"""What the programs of kill tests run in the process that is to die."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from data_prep.storage.atomic import Journal


def die_in_call(
    owner: Any,
    name: str,
    number: int,
    *,
    kind: int = signal.SIGKILL,
    half_done: Callable[..., None] = lambda *arguments: None,
) -> None:
    """Has the call of that number send a signal to its own process, `half_done` before it."""
    function, calls = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            half_done(*arguments)
            os.kill(os.getpid(), kind)
        return function(*arguments, **options)

    setattr(owner, name, call)


def write_half(journal: Journal, record: dict[str, Any]) -> None:
    """Leaves a torn line in a journal."""
    with journal.path.open("ab") as stream:
        stream.write(json.dumps(record).encode()[:30])
