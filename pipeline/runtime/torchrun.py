"""What torchrun tells the processes that it starts. Torch is not imported, so that nobody waits for it."""

import os


def is_under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def count_local_processes() -> int:
    """Returns how many processes torchrun has started on this machine; without it 1."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_under_torchrun() else 1
