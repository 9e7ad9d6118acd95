"""What torchrun tells the processes that it starts. Torch is not imported, so that nobody waits for it."""

import os


def is_under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
