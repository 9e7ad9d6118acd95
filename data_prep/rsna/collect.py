"""One's own image files and a table of labels, laid out as RSNA's without a copy of a pixel."""

import unicodedata
from pathlib import Path, PureWindowsPath

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.doubtful_cells import find_doubtful_cells
from data_prep.rsna.exam_table import (
    Split,
    check_exams,
    locate_images,
    read_exams,
    read_named_rows,
    require_columns,
    sort_by_id,
    write_exam_table,
)
from data_prep.rsna.image_files import split_name
from data_prep.storage.atomic import as_user_error, make_folder
from data_prep.storage.csv_rows import Problem


def collect(files: Path, labels: Path, folder: Path, split: Split = "train") -> int:
    """Makes `<split>.csv` and `<split>_images/`, whose images are links to your files; copies no pixels.

    The CSV has the column `file` too, so that what becomes of an image can be told by your own name for it.
    Doing it again changes nothing; other images or labels in the same folder are refused. The CSV comes last.

    Args:
        files: the folder that the table's `file` column is relative to.
        labels: a CSV with one row per image: file, patient_id, laterality, for the train split cancer, and
            any other of `exam_table.EXAM_COLUMNS`; without image_id, images are numbered from 1 in order.
        folder: where to make it.
        split: which of the two splits it becomes.

    Returns:
        The number of images.

    Raises:
        UserError: naming all rows that break a rule, or what stands in the way; nothing is written then.
    """
    if not files.is_dir():
        what = "is not a folder" if files.exists() else "does not exist"
        raise UserError(f"{files} {what}: name the folder that holds your image files")
    rows = read_named_rows(labels)
    require_columns(rows, ["file", "patient_id", "laterality"], split, source=labels)
    if "image_id" not in rows:
        rows["image_id"] = [str(number) for number in range(1, len(rows) + 1)]
    sources, problems = _find_files(rows["file"], files)
    if split == "test":  # of a train table they are found anyway
        problems += find_doubtful_cells(rows)
    exams = check_exams(rows, split, source=labels, others=problems)
    links = _make_links(exams, sources, folder / f"{split}_images")
    exams = sort_by_id(exams, ["patient_id", "image_id"])
    _require_same_table(exams, folder, split)
    _require_same_images(exams, folder, split, links)
    for link, source in links.items():
        _write_link(link, source)
    write_exam_table(folder / f"{split}.csv", exams)
    return len(exams)


def has_labels(labels: Path) -> bool:
    """Whether a table has labels, which `collect` leaves out for the test split.

    Raises:
        UserError: if it cannot be read.
    """
    return "cancer" in read_named_rows(labels)


def _find_files(names: "pd.Series[str]", files: Path) -> tuple[list[Path], list[Problem]]:
    """Returns the absolute path of every file, and the rows whose file cannot be taken."""
    root = files.resolve()
    sources: dict[Path, None] = {}  # a set that keeps the order
    problems: list[Problem] = []
    for row, name in zip(names.index.tolist(), names.str.strip(), strict=True):
        source = _find_file(root, name)
        is_there = _is_file(source)
        is_absolute = Path(name).is_absolute() or (PureWindowsPath(name).drive and not is_there)
        if is_absolute or ".." in source.parts:
            problems.append(Problem(row, f"file {name!r} must be a path below {files}, written without it"))
        elif not is_there:
            problems.append(Problem(row, f"file {name!r} is not in {files}, from where its path must begin"))
        elif source in sources:
            problems.append(Problem(row, f"file {name!r} stands in an earlier row too"))
        sources[source] = None
    return list(sources), problems


def _find_file(root: Path, name: str) -> Path:
    """Returns the path of a file, its name as it stands or else as another system writes it.

    That is with backslashes between folders, and with accents in one character (NFC) or two (NFD).
    """
    if _is_file(root / name):
        return root / name
    path = root
    for part in name.replace("\\", "/").split("/"):
        spellings = [part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]
        path /= next((each for each in spellings if _is_file(path / each) or _is_folder(path / each)), part)
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or its folder is shut
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _make_links(exams: pd.DataFrame, sources: list[Path], images: Path) -> dict[Path, Path]:
    """Maps the place of each image in the RSNA layout to the file that it stands for."""
    links = {}
    for patient_id, image_id, source in zip(exams["patient_id"], exams["image_id"], sources, strict=True):
        links[images / patient_id / f"{image_id}{split_name(source.name)[1]}"] = source
    return links


def _require_same_table(exams: pd.DataFrame, folder: Path, split: Split) -> None:
    path = folder / f"{split}.csv"
    if not path.exists():
        return
    before = read_exams(folder, split)
    if not before.equals(exams if "file" in before else exams.drop(columns="file")):  # made by an older mammo
        raise UserError(f"{path} holds other exams already: choose another folder, or remove that one first")


def _require_same_images(exams: pd.DataFrame, folder: Path, split: Split, links: dict[Path, Path]) -> None:
    """Looks for files of the same images, under any suffix, and for folders that lead elsewhere."""
    places = [*links, *{link.parent for link in links}, folder / f"{split}_images"]
    others = [path for path in places if path.is_symlink() and path.readlink() != links.get(path)]
    found = locate_images(exams, folder, split).dropna()
    others += [path for path in found if not (path in links and path.is_symlink())]
    if others:
        raise UserError(f"{others[0]} is something else already: choose another folder, or remove it first")


def _write_link(link: Path, source: Path) -> None:
    make_folder(link.parent)
    if link.is_symlink():
        return
    try:
        link.symlink_to(source)
    except OSError as error:
        raise as_user_error(error, link) from error
