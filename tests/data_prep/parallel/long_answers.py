"""What the tests have processes do that are killed and started many times; light, since each imports it."""

import time

LARGE = 2**18  # bytes: a pipe holds a quarter of that, so that a process is often killed while it answers


def answer_at_length(number: int) -> bytes:
    time.sleep(0.001)
    return number.to_bytes(4, "big") * (LARGE // 4)
