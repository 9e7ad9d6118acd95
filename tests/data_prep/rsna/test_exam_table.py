"""Exam tables: hostile and odd CSVs, dtypes, ids, image files, patient subsets."""

import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.rsna.exam_table import (
    EXAM_COLUMNS,
    id_sort_key,
    locate_images,
    name_breast,
    number_exams,
    read_exam_table,
    read_exams,
    read_prediction_ids,
    require_images,
    select_patients,
    sort_by_id,
    write_exam_table,
)

HEADER = "patient_id,image_id,laterality,cancer"
ROWS = ["7,70,L,0", "7,71,L,0", "7,72,R,1", "12,9,L,0"]


def write_table(folder: Path, text: str, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.csv").write_bytes(text.encode())
    return folder


def read(folder: Path, *lines: str, header: str = HEADER) -> pd.DataFrame:
    return read_exams(write_table(folder, "\n".join([header, *lines]) + "\n"), "train")


def refusal(folder: Path, *lines: str, header: str = HEADER) -> str:
    with pytest.raises(UserError) as error:
        read(folder, *lines, header=header)
    assert "\n" not in str(error.value)
    return str(error.value)


def make_exams(cancer_by_patient: dict[str, int]) -> pd.DataFrame:
    rows = [
        {"patient_id": patient_id, "image_id": f"{patient_id}{side}", "laterality": side, "cancer": cancer}
        for patient_id, cancer in cancer_by_patient.items()
        for side in "LR"
    ]
    return pd.DataFrame(rows)


# What a good table becomes


def test_rows_are_sorted_in_id_order_and_prediction_ids_derived(tmp_path: Path) -> None:
    exams = read(tmp_path, "12,9,L,0", "7,101,R,1", "7,20,L,0")
    assert exams["image_id"].tolist() == ["20", "101", "9"]
    assert exams["prediction_id"].tolist() == ["7_L", "7_R", "12_L"]
    assert exams.index.tolist() == [0, 1, 2]


def test_columns_have_a_fixed_order_and_fixed_types(tmp_path: Path) -> None:
    header = (
        "difficult_negative_case,BIRADS,age,secret,view,implant,density,cancer,laterality,image_id,patient_id"
    )
    exams = read(tmp_path, "True,0,61,Anna,CC,0,B,1,L,5,3", ",,,,,,,0,R,6,3", header=header)
    assert list(exams) == [name for name in EXAM_COLUMNS if name in exams]
    assert "secret" not in exams
    assert {name: str(kind) for name, kind in exams.dtypes.items()} == {
        name: EXAM_COLUMNS[str(name)].dtype for name in exams
    }
    assert exams["age"].tolist()[0] == 61.0
    missing = exams.loc[1, ["difficult_negative_case", "BIRADS", "age", "view", "implant", "density"]]
    assert missing.isna().all()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + "\n".join([HEADER, *ROWS]),
        "\r\n".join([HEADER, *ROWS, "", ",,,"]),
        "\n".join(f"{line},," for line in [HEADER, *ROWS]),
        "\n".join([HEADER, *(row.replace(",L,", ", left ,").replace(",R,", ",r,") for row in ROWS)]),
        "\n".join([HEADER, *(row.replace(",", ".0,", 2).replace(",0", ",0.0") for row in ROWS)]),
        "\n".join(
            [" cancer,laterality ,image_id,patient_id", *(",".join(row.split(",")[::-1]) for row in ROWS)]
        ),
        "\n".join(f'"{line}"'.replace(",", '","') for line in [HEADER, *ROWS]),
    ],
    ids=["BOM", "blank rows", "empty columns", "spelling of sides", "61.0 for 61", "column order", "quotes"],
)
def test_harmless_differences_are_read_correctly(tmp_path: Path, text: str) -> None:
    expected = read(tmp_path / "plain", *ROWS)
    exams = read_exams(write_table(tmp_path / "odd", text), "train")
    pd.testing.assert_frame_equal(exams, expected)


@pytest.mark.parametrize("words", [("no", "YES"), ("False", "True"), ("benign", "Malignant")])
def test_labels_in_words_are_read_as_what_they_say(tmp_path: Path, words: tuple[str, str]) -> None:
    rows = [row[:-1] + words[int(row[-1])] for row in ["7,70,L,0", "7,72,R,1", "12,9,L,0"]]
    assert read(tmp_path, *rows)["cancer"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("header", [HEADER.upper(), "Patient ID,Image-Id,Laterality,CANCER"])
def test_column_names_are_known_in_any_case(tmp_path: Path, header: str) -> None:
    pd.testing.assert_frame_equal(read(tmp_path / "a", *ROWS, header=header), read(tmp_path / "b", *ROWS))


def test_two_columns_of_one_name_but_for_case_are_refused_by_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, "7,70,L,0,1", header=f"{HEADER},Cancer")
    assert "names columns 4 and 5 alike, both are cancer: remove one" in message


def test_the_order_of_rows_makes_no_difference(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(read(tmp_path, *ROWS), read(tmp_path, *reversed(ROWS)))


def test_a_given_prediction_id_is_kept_and_a_missing_one_derived(tmp_path: Path) -> None:
    exams = read(tmp_path, "7,70,L,0,exam-1", "7,71,R,0,", header=f"{HEADER},prediction_id")
    assert exams["prediction_id"].tolist() == ["exam-1", "7_R"]


def test_a_test_table_needs_no_label_and_reads_none(tmp_path: Path) -> None:
    write_table(tmp_path, "patient_id,image_id,laterality,cancer\n7,70,L,?\n", "test")
    assert "cancer" not in read_exams(tmp_path, "test")


def test_doubtful_cells_of_a_test_table_cost_no_submission(tmp_path: Path) -> None:
    """Nobody can mend a table that is hidden, and no prediction depends on them."""
    header, rows = "patient_id,image_id,laterality,age", ["7,70,L,0", "07,71,R,999", "1e5,72,L,61"]
    write_table(tmp_path, "\n".join([header, *rows]) + "\n", "test")
    assert read_exams(tmp_path, "test")["prediction_id"].tolist() == ["7_L", "07_R", "1e5_L"]
    with pytest.raises(UserError, match="4 problems to fix"):
        read(tmp_path, "7,70,L,0,0", "07,71,R,0,61", "1e5,72,L,0,999", header=f"{HEADER},age")


def test_prediction_ids_come_once_in_order_of_appearance(tmp_path: Path) -> None:
    write_table(tmp_path, "patient_id,image_id,laterality\n7,9,R\n7,8,L\n3,1,L\n7,10,R\n", "test")
    assert read_prediction_ids(tmp_path) == ["7_R", "7_L", "3_L"]


# What is refused


def test_a_folder_without_the_table_is_told_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no test\.csv: the layout is .*test_images/<patient_id>/<image_id>\.dcm"
    ):
        read_exams(tmp_path, "test")


def test_a_missing_column_is_named_with_the_needed_and_the_present_ones(tmp_path: Path) -> None:
    """But not with others: a file without a header has a patient there."""
    message = refusal(tmp_path, "7,70,L", header="patient_id,Weiherer^Annegret,laterality")
    assert "lacks the column image_id, cancer" in message
    assert message.endswith("needs patient_id, image_id, laterality, cancer and has patient_id, laterality")


@pytest.mark.parametrize(
    "bad_id",
    [
        "../../x",
        "/etc/x",
        "=cmd()",
        "a\0b",
        "",
        "NaN",
        "-7",
        "_7",
        "a b",
        "<script>",
        "x" * 65,
        "1.5",
        "1E+9",
    ],
)
@pytest.mark.parametrize("column", ["patient_id", "image_id"])
def test_ids_that_are_no_ids_are_refused_with_their_row(tmp_path: Path, column: str, bad_id: str) -> None:
    row = f"{bad_id},71,L,0" if column == "patient_id" else f"7,{bad_id},L,0"
    message = refusal(tmp_path, "7,70,L,0", row)
    assert f"1 problem to fix: row 3: {column} " in message
    assert "\0" not in message


@pytest.mark.parametrize(
    ("header", "row", "what"),
    [
        (HEADER, "7,70,X,0", "laterality 'X' must be L or R"),
        (HEADER, "7,70,,0", "laterality (empty) must be L or R"),
        (HEADER, "7,70,L,2", "cancer '2' must be 0 or 1"),
        (HEADER, "7,70,L,", "cancer (empty) must be 0 or 1"),
        (HEADER, "7,70,L", "3 cells under 4 names"),
        (f"{HEADER},age", "7,70,L,0,061Y", "age '061Y' must be years"),
        (f"{HEADER},implant", "7,70,L,0,maybe", "implant 'maybe' must be 0 or 1"),
        (
            f"{HEADER},difficult_negative_case",
            "7,70,L,0,2",
            "difficult_negative_case '2' must be True or False",
        ),
        (f"{HEADER},machine_id", "7,70,L,0,=1+1", "machine_id '=1+1' must be"),
        (f"{HEADER},view", "7,70,L,0,<script>", "view '<script>' must be"),
        (f"{HEADER},prediction_id", "7,70,L,0,../x", "prediction_id '../x' must be"),
    ],
)
def test_cells_that_break_the_rule_of_their_column_are_refused(
    tmp_path: Path, header: str, row: str, what: str
) -> None:
    assert f"row 2: {what}" in refusal(tmp_path, row, header=header)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["7,70,L,0,", "7,70,R,0,"], "row 3: image_id 70 stands in an earlier row too"),
        (["7,70,L,0,", "7,70.0,R,0,"], "row 3: image_id 70 stands in an earlier row too"),
        (
            ["7,70,L,0,", "8,1,L,0,", "7,71,L,1,"],
            "row 4: cancer 1 but 0 in an earlier row of the same patient_id",
        ),
        (
            ["7,70,L,0,a", "7,71,L,0,b"],
            "row 3: prediction_id b but a in an earlier row of the same patient_id",
        ),
        (
            ["7,70,L,0,a", "8,71,L,0,a"],
            "row 3: patient_id 8 but 7 in an earlier row of the same prediction_id",
        ),
        (
            ["7,70,L,0,a", "7,71,R,0,a"],
            "row 3: laterality R but L in an earlier row of the same prediction_id",
        ),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: list[str], what: str) -> None:
    assert what in refusal(tmp_path, *rows, header=f"{HEADER},prediction_id")


def test_all_problems_are_told_at_once_and_spreadsheet_rows_count_blank_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, "../x,70,L,0", "", "7,71,Q,3", "7,70,L,0")
    for part in [
        "4 problems",
        "row 2: patient_id",
        "row 4: cancer '3'",
        "row 4: laterality 'Q'",
        "row 5: image_id 70",
    ]:
        assert part in message


def test_many_problems_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    message = refusal(tmp_path, *(f"7,{image_id},Q,0" for image_id in range(25)))
    assert "25 problems" in message
    assert "row 11:" in message
    assert "row 12:" not in message
    assert message.endswith("and 15 more")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "lacks the column"),
        (HEADER.encode(), "no rows below its header"),
        (f"{HEADER}\n7,70,L,0,5\n".encode(), "row 2: 5 cells under 4 names"),
        (f"{HEADER},cancer\n7,70,L,0,0\n".encode(), "names columns 4 and 5 alike"),
        (f'{HEADER}\n7,"70,L,0\n8,80,L,0\n'.encode(), "is not a CSV"),
        (f"{HEADER}\n7,70,L,0\n".encode("utf-16")[:-1], "is not UTF-8 text: save it as"),
        (f"{HEADER}\rMüller,70,L,0\r".encode("latin-1"), "not UTF-8 text, line 2 has a letter in an older"),
        (b"PK\x03\x04", "is a workbook, not a CSV: save its sheet as"),
    ],
    ids=[
        "empty",
        "no rows",
        "long row",
        "column twice",
        "open quote",
        "half a UTF-16 letter",
        "Latin-1",
        "workbook",
    ],
)
def test_files_that_are_no_tables_are_refused_in_one_sentence(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=what):
        read_exams(tmp_path, "train")


def test_a_long_cell_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, f"{'x' * 100_000},70,L,0")) < 400


# Writing, sorting


def test_a_table_of_ours_may_hold_what_is_doubtful_in_a_users(tmp_path: Path) -> None:
    """Caches are older than the rules for doubtful cells."""
    path = tmp_path / "exams.csv"
    path.write_text(f"{HEADER},age\n0001,70,L,0,0\n1,71,L,0,999\nABC,1E5,L,0,\nabc,5,L,0,\n")
    assert len(read_exam_table(path)) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_written_table_is_read_back_the_same(tmp_path: Path, split: str) -> None:
    header = "patient_id,image_id,laterality,cancer,age,implant,BIRADS,machine_id,difficult_negative_case"
    write_table(tmp_path, f"{header}\n7,70,L,0,61.25,1,0,29,True\n12,8,R,1,,,,GE 2.0,\n", split)
    exams = read_exams(tmp_path, split)  # type: ignore[arg-type]
    write_exam_table(tmp_path / "exams.csv", exams.assign(note="x"))
    pd.testing.assert_frame_equal(read_exam_table(tmp_path / "exams.csv"), exams)


def test_columns_that_are_wholly_empty_are_read_back_the_same(tmp_path: Path) -> None:
    header = f"{HEADER},age,implant,density,difficult_negative_case"
    exams = read(tmp_path, "7,70,L,0,,,,", header=header)
    write_exam_table(tmp_path / "exams.csv", exams)
    pd.testing.assert_frame_equal(read_exam_table(tmp_path / "exams.csv"), exams)


def test_an_absent_exam_table_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_exam_table(tmp_path / "exams.csv")


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_ids_that_are_numbers_sort_as_numbers(numbers: list[int]) -> None:
    table = sort_by_id(pd.DataFrame({"image_id": [str(number) for number in numbers]}), ["image_id"])
    assert [int(identifier) for identifier in table["image_id"]] == sorted(numbers)
    assert sorted(map(str, numbers), key=id_sort_key) == table["image_id"].tolist()


# Image files


def test_images_are_found_under_their_preferred_suffix(tmp_path: Path) -> None:
    exams = read(tmp_path, "7,1,L,0", "7,2,L,0", "7,3,L,0", "8,4,L,0", "9,5,L,0")
    folder = tmp_path / "train_images" / "7"
    folder.mkdir(parents=True)
    for name in ["1.png", "1.dcm", "2.PGM", "3", "3.txt", "4.dcm"]:
        (folder / name).touch()
    (tmp_path / "train_images" / "9" / "5.dcm").mkdir(parents=True)
    paths = locate_images(exams, tmp_path, "train")
    assert paths.tolist() == [folder / "1.dcm", folder / "2.PGM", folder / "3", None, None]
    assert paths.index.equals(exams.index)


def test_links_are_followed_and_broken_ones_are_absent(tmp_path: Path) -> None:
    exams = read(tmp_path, "7,1,L,0", "7,2,L,0")
    folder = tmp_path / "train_images" / "7"
    folder.mkdir(parents=True)
    (tmp_path / "pixels").touch()
    (folder / "1.dcm").symlink_to(tmp_path / "pixels")
    (folder / "2.dcm").symlink_to(tmp_path / "nowhere")
    assert locate_images(exams, tmp_path, "train").tolist() == [folder / "1.dcm", None]


def test_absent_images_are_one_sentence_or_left_out_and_counted(tmp_path: Path) -> None:
    exams = read(tmp_path, "7,1,L,0", "7,2,L,0", "8,3,L,0")
    folder = tmp_path / "train_images" / "7"
    folder.mkdir(parents=True)
    (folder / "2.dcm").touch()
    with pytest.raises(UserError, match=r"2 of the 3 images .* image 1: .*7/1\.dcm.*--present-only"):
        require_images(exams, tmp_path, "train")
    present, paths, num_absent = require_images(exams, tmp_path, "train", present_only=True)
    assert present["image_id"].tolist() == ["2"]
    assert paths.tolist() == [folder / "2.dcm"]
    assert num_absent == 2
    assert present.index.equals(paths.index)


def test_a_folder_without_any_image_is_refused_even_with_present_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of the 1 images"):
        require_images(read(tmp_path, "7,1,L,0"), tmp_path, "train", present_only=True)


# Patient subsets


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_subset_keeps_the_share_of_cancer_and_whole_patients(seed: int) -> None:
    exams = make_exams({str(number): int(number % 5 == 0) for number in range(100)})
    subset = select_patients(exams, 20, seed)
    assert subset["patient_id"].nunique() == 20
    assert subset.groupby("patient_id").size().eq(2).all()
    assert subset["cancer"].sum() == 8  # 4 of 20 patients, two images each


def test_subsets_are_nested_repeatable_and_independent_of_row_order() -> None:
    exams = make_exams({str(number): int(number % 7 == 0) for number in range(40)})
    previous: set[str] = set()
    for num_patients in range(1, 41):
        subset = select_patients(exams, num_patients, seed=3)
        shuffled = select_patients(exams.sample(frac=1, random_state=0), num_patients, seed=3)
        chosen = set(subset["patient_id"])
        assert len(chosen) == num_patients
        assert chosen == set(shuffled["patient_id"])
        assert previous < chosen
        previous = chosen
    assert set(select_patients(exams, 10, seed=4)["patient_id"]) != set(
        select_patients(exams, 10, seed=3)["patient_id"]
    )


def test_a_small_subset_of_a_rare_disease_still_holds_a_cancer() -> None:
    exams = make_exams({str(number): int(number == 0) for number in range(50)})
    assert select_patients(exams, 2, seed=0)["cancer"].sum() == 2


def test_a_subset_of_unlabelled_exams_can_be_drawn() -> None:
    exams = make_exams(dict.fromkeys("abcdef", 0)).drop(columns="cancer")
    assert select_patients(exams, 3, seed=0)["patient_id"].nunique() == 3


@pytest.mark.parametrize("num_patients", [0, -1, 4])
def test_impossible_subsets_are_refused(num_patients: int) -> None:
    with pytest.raises(UserError, match=f"{num_patients} patients asked for: choose from 1 to the 3"):
        select_patients(make_exams({"a": 0, "b": 0, "c": 1}), num_patients, seed=0)


# The real tables


def test_the_real_training_table_is_read_whole_and_fast(real_data: Path) -> None:
    start = time.process_time()
    exams = read_exams(real_data / "rsna_csv", "train")
    assert time.process_time() - start < 4  # about 1 s; the bound is for a busy machine
    path = real_data / "rsna_csv" / "train.csv"
    expected = pd.read_csv(path).sort_values(["patient_id", "image_id"], ignore_index=True)
    assert len(exams) == 51_696
    assert exams["image_id"].astype("int64").tolist() == expected["image_id"].tolist()
    for name in [
        "cancer",
        "age",
        "implant",
        "biopsy",
        "invasive",
        "difficult_negative_case",
        "BIRADS",
        "machine_id",
    ]:
        values = exams[name].astype("float64")
        assert values.equals(expected[name].astype("float64").rename(name)), name
    for name in ["laterality", "view", "density"]:
        assert exams[name].equals(expected[name]), name


def test_the_real_test_table_is_read(real_data: Path) -> None:
    exams = read_exams(real_data / "rsna_csv", "test")
    assert len(exams) == 4
    assert "cancer" not in exams
    assert read_prediction_ids(real_data / "rsna_csv") == ["10008_L", "10008_R"]


def test_all_real_images_are_found(real_data: Path) -> None:
    exams = read_exams(real_data / "rsna_png256", "train")
    assert require_images(exams, real_data / "rsna_png256", "train").num_absent == 0


# Exams of one patient


ROUNDS = ["7,1,70,L,0", "7,1,71,R,0", "7,2,72,L,1", "12,1,9,L,0"]
ROUNDS_HEADER = "patient_id,exam_id,image_id,laterality,cancer"


def test_rounds_of_a_woman_are_breasts_of_their_own(tmp_path: Path) -> None:
    exams = read(tmp_path, *ROUNDS, header=ROUNDS_HEADER)
    assert list(exams) == ["patient_id", "exam_id", "image_id", "laterality", "prediction_id", "cancer"]
    assert exams["prediction_id"].tolist() == ["7_1_L", "7_1_R", "7_2_L", "12_1_L"]
    assert name_breast(exams) == ["patient_id", "exam_id", "laterality"]
    assert name_breast(exams, exams.drop(columns="exam_id")) == ["patient_id", "laterality"]
    assert number_exams(exams)[0] == number_exams(exams)[1]
    assert len(set(number_exams(exams))) == 3
    assert len(set(number_exams(exams.drop(columns="exam_id")))) == 2
    write_exam_table(tmp_path / "copy.csv", exams)
    pd.testing.assert_frame_equal(read_exam_table(tmp_path / "copy.csv"), exams)


def test_within_an_exam_a_breast_has_one_label_and_one_prediction_id(tmp_path: Path) -> None:
    message = refusal(tmp_path, *ROUNDS, "7,2,73,L,0", header=ROUNDS_HEADER)
    assert (
        "row 6: cancer 0 but 1 in an earlier row of the same patient_id and exam_id and laterality" in message
    )
    header = f"{ROUNDS_HEADER},prediction_id"
    message = refusal(tmp_path, "7,1,70,L,0,a", "7,2,71,L,0,a", header=header)
    assert "exam_id 2 but 1 in an earlier row of the same prediction_id" in message
    exams = read(tmp_path, "7,1,70,L,0,a", "7,2,71,L,0,b", header=header)
    assert exams["prediction_id"].tolist() == ["a", "b"]


def test_an_exam_may_be_named_by_its_study_instance_uid(tmp_path: Path) -> None:
    uid = "1.2.840.113619.2.66.2158408118.16050010109105933.20000"
    exams = read(tmp_path, f"7,{uid},70,L,0", f"7,{uid[:-1]}1,71,L,1", header=ROUNDS_HEADER)
    assert exams["exam_id"].tolist() == [uid, f"{uid[:-1]}1"]
    assert exams["prediction_id"].tolist() == [f"7_{exam_id}_L" for exam_id in exams["exam_id"]]
    write_exam_table(tmp_path / "copy.csv", exams)
    pd.testing.assert_frame_equal(read_exam_table(tmp_path / "copy.csv"), exams)


@pytest.mark.parametrize("cell", ["", "na", ".1", "1/2", "../1", "1E5", "1.2E5", "1.2E+18"])
def test_every_image_has_an_exam_that_can_be_read(tmp_path: Path, cell: str) -> None:
    assert "exam_id" in refusal(tmp_path, f"7,{cell},70,L,0", "8,10,71,L,0", header=ROUNDS_HEADER)


def test_ids_that_join_to_the_same_are_told_apart_or_refused(tmp_path: Path) -> None:
    """a_b and c, a and b_c."""
    message = refusal(tmp_path, "a_b,c,70,L,0", "a,b_c,71,L,0", header=ROUNDS_HEADER)
    assert "patient_id a but a_b in an earlier row of the same prediction_id" in message


def test_the_longest_ids_survive_a_cache(tmp_path: Path) -> None:
    row = f"{'p' * 64},{'e' * 64},70,L,0"
    exams = read(tmp_path, row, header=ROUNDS_HEADER)
    write_exam_table(tmp_path / "copy.csv", exams)
    pd.testing.assert_frame_equal(read_exam_table(tmp_path / "copy.csv"), exams)
