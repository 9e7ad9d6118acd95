"""The entry of `mammo`, which is `python -m pipeline` too: the command line, or why it cannot be loaded."""

import sys
from typing import NoReturn

from data_prep.errors import printable
from pipeline.cli.stopped import describe_stop
from pipeline.runtime.signals import watch_signals


def main() -> None:
    """Runs `mammo` and ends the process with its exit code."""
    watch_signals(describe_stop)  # first of all: imports take seconds
    try:
        from pipeline.cli import app
    except Exception as error:  # a package that is missing or broken: no set of errors has them all
        _leave(error)
    app.main()


def _leave(error: Exception) -> NoReturn:
    """Says why nothing can run; to `mammo doctor`, all that is wrong, without the packages that may be."""
    if sys.argv[1:2] != ["doctor"]:
        print(
            f"mammo: a package is missing or broken ({type(error).__name__}: {printable(str(error))}): "
            "`mammo doctor` says how to fix it",
            file=sys.stderr,
        )
        sys.exit(2)
    from pipeline import doctor

    for check in doctor.run_checks():
        state = "wrong" if check.problem else "good "
        print(f"{state}  {check.name}  {printable(check.found)}")
        if check.problem:
            print(printable(check.sentence), file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
