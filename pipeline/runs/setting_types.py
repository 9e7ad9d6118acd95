"""Types of settings with rules of their own, in words that pydantic would not find."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator

MOST_WORKERS = 256
SHORTCUTS = {"site_id", "machine_id"}
ONLY_IN_TRAIN = {"biopsy", "invasive", "BIRADS", "density", "difficult_negative_case", "cancer"}


def _check_workers(value: Any) -> int | Literal["auto"]:
    """Returns the value; of a union, pydantic itself would say for each type why it does not fit."""
    if value == "auto" or (type(value) is int and 0 <= value <= MOST_WORKERS):
        return value
    raise ValueError(f'it must be "auto" or a whole number from 0 to {MOST_WORKERS}')


def _check_inputs(value: Any) -> tuple[str, ...]:
    """Returns the names of what counts beside the pixels, or says why one of them must not."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError('it takes a list: ["age"], or [] for the pixels alone')
    for name in value:
        if name in SHORTCUTS:
            raise ValueError(
                f"{name} must not count: it tells where a woman was examined, and with that how cancers were "
                'collected; ["age"] is all that there is'
            )
        if name in ONLY_IN_TRAIN:
            raise ValueError(
                f"{name} must not count: test.csv does not have it; "
                '["age"] is all that there is, and train.auxiliaries takes others as targets'
            )
        if name != "age":
            raise ValueError(f'{name!r} is not known: ["age"] is all that there is beside the pixels')
    return tuple(dict.fromkeys(value))


Workers = Annotated[int | Literal["auto"], PlainValidator(_check_workers)]
Inputs = Annotated[tuple[str, ...], BeforeValidator(_check_inputs)]
