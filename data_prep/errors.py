"""What can go wrong for a user, as one sentence and an exit code."""

import unicodedata

UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of Unicode; names of files hold anything


def printable(text: str) -> str:
    """Writes characters that would steer a terminal, hide or not be UTF-8 as Python does in quotes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in UNSEEN and character not in "\n\t"
        else character
        for character in text
    )


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: 1 image, 1,234 images."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class UserError(Exception):
    """A mistake that the user can mend: the message gives the value, the rule and the way out."""

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence).replace("\n", " "))


class TrainingStopped(UserError):
    """Training cannot go on: the loss is not finite, or no checkpoint can be read."""

    exit_code = 3


class DiskFull(UserError):
    """The disk is full; everything written before is intact and the same command goes on."""

    exit_code = 4


class FolderInUse(UserError):
    """Another process is working in the folder."""

    exit_code = 5


class ImageError(Exception):
    """One image cannot be used. The run goes on and the image gets a row in `failures.csv`.

    Attributes:
        reason: a reason code such as `not_dicom`, `truncated`, `unsupported`, `bad_value`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """Both arguments travel when the error crosses a process boundary."""
        return type(self), (self.reason, str(self))
