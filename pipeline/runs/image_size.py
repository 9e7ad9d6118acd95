"""The size of the images: `prepare.side` and `model.image_size`, of which one sets both."""

from typing import Any

SIDE, IMAGE_SIZE = ("prepare", "side"), ("model", "image_size")


def link_sizes(
    values: dict[str, Any], changed: dict[str, str], following: tuple[str, str] | None = None
) -> None:
    """Gives both names of the images' size one value, where one alone is set, or by `--set`.

    A file that sets both and differently is left as it is, for its folder of classes or for the error.
    """
    is_set = [pair for pair in (SIDE, IMAGE_SIZE) if pair[1] in _table(values, pair[0])]
    by_set = [pair for pair in is_set if ".".join(pair) in changed]
    leaders = by_set if len(by_set) == 1 else is_set
    if len(leaders) != 1:
        return
    leader, follower = leaders[0], IMAGE_SIZE if leaders[0] == SIDE else SIDE
    if following in (None, follower) and isinstance(values.get(follower[0], {}), dict):
        values.setdefault(follower[0], {})[follower[1]] = values[leader[0]][leader[1]]
        if by_set:
            changed[".".join(follower)] = changed[".".join(leader)]


def _table(values: dict[str, Any], name: str) -> dict[str, Any]:
    table = values.get(name)
    return table if isinstance(table, dict) else {}
