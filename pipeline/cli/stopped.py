"""What a command that a signal has stopped says. Nothing slow is imported: it may happen at any time."""

import os
import re
import shlex
import signal
import sys

from data_prep.errors import printable
from pipeline.runtime.torchrun import is_under_torchrun

RESUMABLE = {"demo", "predict", "prepare", "train"}  # the commands that go on where they were stopped
RESUMABLE_WITH = {"evaluate": ("--data",)}  # those that do so with one of these options


def describe_command() -> str:
    """Returns the command as it was typed, without passwords."""
    typed = ["mammo", *(re.sub("://.*@", "://***@", word) for word in sys.argv[1:])]
    return printable(shlex.join(typed))


def describe_stop(number: int) -> str:
    """Returns the line for a signal's number; it is empty in every torchrun process but the main one."""
    if is_under_torchrun() and os.environ.get("RANK") != "0":
        return ""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    way_on = "what was done is kept, go on with" if _is_resumable(words) else "start again with"
    command = "the same torchrun command" if is_under_torchrun() else describe_command()
    return f"mammo: stopped by {signal.Signals(number).name}; {way_on}: {command}\n"


def _is_resumable(words: list[str]) -> bool:
    options = RESUMABLE_WITH.get(words[0], ()) if words else ()
    has_option = bool(options) and any(word.startswith(options) for word in sys.argv[1:])
    return bool(RESUMABLE & set(words[:1])) or has_option
