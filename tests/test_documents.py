"""The documents tell the truth: their commands run, their tables are the code's, and nothing is said twice.

The commands run in their order, on phantoms in the place of real data and with a small model. Each document
is a test of its own, and so is each section of `APART`, which takes longer than others.
"""

import ast
import inspect
import itertools
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from data_prep.phantom.dataset import write_phantoms
from data_prep.rsna.exam_table import select_patients
from data_prep.rsna.folds import make_folds
from data_prep.settings import StrictSettings
from pipeline.cli.app import app
from pipeline.runs.recipe import Recipe
from tests import forked
from tests.test_end_to_end import TINY, mammo

ROOT = Path(__file__).parents[1]
README, SETTINGS, RUNS = "README.md", "configs/README.md", "reports/README.md"
DATA, CLUSTER = "data_prep/README.md", "configs/cluster/README.md"
DOCUMENTS = [
    *(README, SETTINGS, RUNS, DATA, CLUSTER, "configs/kaggle/README.md"),
    *(".github/CONTRIBUTING.md", "CHANGELOG.md", "reports/LOG.md"),
]
APART = {DATA: ["Object storage"], CLUSTER: ["Ray"]}
LONGEST_README = 1300  # words
LONG_SENTENCE = 60  # characters

SMALLER = {"200": "20"}  # patients: as many as there are phantoms
SMALL = ["--set", "prepare.side=64"]
FINER = ["--set", "train.precision=float32", "--set", "train.learning_rate=0.01"]
"""Of so small a model all answers are equal in bf16, and by a threshold; `check` finds fault with that."""
ALL_PATCHES = ["--set", "model.image_size=64", "--set", "model.kept_patches=0"]
TINIER = [*TINY, *FINER, *SMALL, *ALL_PATCHES, "--set", "train.num_folds=2"]
PRETRAIN = [*TINIER, "--set", "pretrain.decoder_width=32", "--set", "pretrain.probe_every=1"]
MORE = {"prepare": SMALL, "train": TINIER, "pretrain": PRETRAIN, "predict": ["--probabilities"]}
ALONE = {name: ["--workers", "0"] for name in ("prepare", "verify", "pack", "predict")}


def read(document: str) -> str:
    """Returns the text of a document."""
    return (ROOT / document).read_text("utf-8")


def split_sections(text: str) -> dict[str, str]:
    """Returns what stands below each heading, up to the next heading of any level."""
    sections, heading, is_code = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        is_code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not is_code:
            heading = line.strip("# \n")
        sections[heading] = sections.get(heading, "") + line
    return sections


def find_blocks(text: str) -> list[tuple[str, str]]:
    """Returns language and content of each block of code."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(content)) for language, content in blocks]


# Commands


@dataclass(frozen=True)
class Script:
    """The commands of a document, or of one of its sections.

    Attributes:
        name: of the document and the section.
        steps: lines of a shell, and blocks of Python.
    """

    name: str
    steps: list[str] = field(default_factory=list)


def find_scripts() -> Iterator[Script]:
    """Yields all that a reader would type, in order."""
    for document in DOCUMENTS:
        together = Script(document)
        for heading, text in split_sections(read(document)).items():
            script = Script(f"{document}: {heading}") if heading in APART.get(document, []) else together
            for language, content in find_blocks(text):
                if language in {"sh", "python"}:
                    script.steps.extend([content] if language == "python" else content.splitlines())
            if script is not together:
                yield script
        if together.steps:
            yield together


SCRIPTS = list(find_scripts())
NEEDS = {CLUSTER: "cache", DATA: "run", f"{DATA}: Object storage": "run"}
"""What a script takes over from those of other documents."""


def label(data: Path, path: Path, *, split: str) -> None:
    """Writes a table of labels such as the document shows for one's own files."""
    exams = pd.read_csv(data / f"{split}.csv")
    files = [f"{split}_images/{row.patient_id}/{row.image_id}.dcm" for row in exams.itertuples()]
    columns = ["patient_id", "laterality", "view", *(["cancer"] if split == "train" else [])]
    exams[columns].assign(file=files).to_csv(path, index=False)


def furnish(folder: Path, needs: str) -> Path:
    """Makes what the reader has before the first command, and returns the data."""
    data = folder / "rsna-breast-cancer-detection"
    write_phantoms(data, num_patients=20, seed=2, rows=320, columns=256)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "my_dicom").symlink_to(data)
    (data / "exam1").mkdir()
    (data / "exam1/IM0001").symlink_to(next(data.rglob("*.dcm")))
    label(data, folder / "labels.csv", split="train")
    label(data, folder / "new_cases.csv", split="test")
    if needs:
        run("mammo prepare rsna-breast-cancer-detection --cache cache", folder)
    if needs == "run":
        run("mammo train configs/smoke.toml --cache cache --run reports/first", folder)
    return data


def run(step: str, folder: Path, cluster: str = "") -> None:
    """Does what a line of a shell or a block of Python says, in that folder and smaller."""
    program, *arguments = shlex.split(step, comments=True)
    if program == "mammo":
        here = [SMALLER.get(argument, argument) for argument in arguments]
        here = [cluster if argument == "auto" else argument for argument in here]
        here += MORE.get(here[0], [])
        if "--engine" in here:  # Ray wants a process of its own
            mammo(*here, folder=folder)
            return
        ended = CliRunner().invoke(app, [*here, *ALONE.get(here[0], [])])
        assert ended.exit_code == 0, (step, ended.output, ended.exception)
    elif program == "torchrun":
        forked.finish(forked.start_torchrun(*arguments, *TINIER)).check_returncode()
        assert (folder / arguments[-1] / "report.html").exists()
    elif program == "make":  # this very test, its set-up, and the demo's own test
        assert f"\n{arguments[0]}:" in read("Makefile")
    elif program in {"sbatch", "kubectl"}:  # test_cluster_files.py does what these do
        assert (ROOT / arguments[-1]).is_file()
    elif program == "!cp":  # Kaggle's wheels come over a network; test_wheel.py builds ours
        assert "-c mammo/constraints.txt" in step
    else:
        assert program in {"from", "import"}, step
        forked.run("-c", step, cwd=folder).check_returncode()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_every_command_runs(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(step.startswith(("mammo", "torchrun")) for step in script.steps):
        data = furnish(tmp_path, NEEDS.get(script.name, ""))
        if "s3://" in "".join(script.steps):
            request.getfixturevalue("store").upload(data, data.name)
    cluster = ""
    if "--address auto" in "".join(script.steps):
        nodes = request.getfixturevalue("nodes")
        nodes.have(1)
        cluster = nodes.address
    for step in script.steps:
        if step.startswith("export "):
            monkeypatch.setenv(*shlex.split(step, comments=True)[1].split("="))
        else:
            run(step, tmp_path, cluster)


def test_the_documents_show_the_whole_way() -> None:
    steps = [step.split() for script in SCRIPTS for step in script.steps]
    shown = {words[1] for words in steps if words[0] == "mammo"} | {words[0] for words in steps} - {"mammo"}
    assert shown >= {
        "collect",
        "prepare",
        "inspect",
        "verify",
        "pack",
        "pretrain",
        "train",
        "evaluate",
        "predict",
        "check",
    }
    assert shown >= {"torchrun", "export", "sbatch", "kubectl", "make"}


def test_the_part_to_try_first_has_folds_at_the_prevalence_of_rsna() -> None:
    cancers = [int(patient < 486) for patient in range(11_913)]
    ids = [str(patient) for patient in range(11_913)]
    exams = pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L", "cancer": cancers})
    (num_patients,) = SMALLER
    part = select_patients(exams, int(num_patients), seed=0)
    assert f"--patients {num_patients}" in read(SETTINGS)
    assert "--set train.num_folds=2" in read(SETTINGS)
    assert len(make_folds(part, num_folds=2, seed=0)) == int(num_patients)


# Links and names


def find_anchors(document: str) -> set[str]:
    """Returns the names by which headings can be linked to, as GitHub makes them."""
    headings = split_sections(read(document))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in find_anchors(str(target.resolve().relative_to(ROOT))), link


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", read(document))
        targets = [(ROOT / document).parent.joinpath(link).resolve() for link in links if "://" not in link]
        places = [target / "README.md" if target.is_dir() else target for target in targets]
        found = {str(place.relative_to(ROOT)) for place in places if place.suffix == ".md" and place.exists()}
        waiting += sorted(found - reached)
    assert reached == {*DOCUMENTS}


def test_the_table_of_commands_is_complete() -> None:
    listed = re.findall(r"^\| `mammo (\w+)", read(README), flags=re.MULTILINE)
    assert listed == [command.name or command.callback.__name__ for command in app.registered_commands]


def test_the_folder_tree_names_what_is_there() -> None:
    ((_, tree),) = find_blocks(split_sections(read(README))["Folders"])
    listed: dict[str, list[str]] = {}
    for indentation, name in re.findall(r"^( *)([\w.]+/?) ", tree, flags=re.MULTILINE):
        if indentation:
            listed[list(listed)[-1]].append(name)
        else:
            listed[name] = []
    assert sorted(listed) == ["configs/", "data_prep/", "pipeline/", "reports/", "tests/"]
    for folder, names in listed.items():
        assert all((ROOT / folder / name).exists() for name in names)
        packages = {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
        assert {name for name in names if name.endswith("/")} == packages


def test_the_table_of_faults_names_tests_that_exist() -> None:
    table = split_sections(read(RUNS))["What mammo survives"]
    rows = [line for line in table.splitlines() if re.match(r"\| [0-9]+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 36))
    for row in rows:
        names = re.findall(r"`(\S+\.py)`", row)
        assert names, row
        for name in names:
            (path,) = [path for path in (ROOT / "tests").rglob(Path(name).name) if path.match(name)]
            assert "def test_" in path.read_text(), name


def test_the_checksums_are_of_the_pinned_versions() -> None:
    pinned = {line.split()[0] for line in read("constraints.txt").splitlines() if "==" in line}
    lines = [line.split() for line in read("constraints-hashed.txt").splitlines()]
    hashed = {words[0]: words[1] for words in lines if words[0] != "#"}
    assert set(hashed) <= pinned
    assert {pin.split("==")[0] for pin in pinned - set(hashed)} == {"torch", "torchvision"}
    assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in hashed.values())


# Settings


def find_tables(kind: type[BaseModel], name: str = "") -> dict[str, type[BaseModel]]:
    """Returns the class of each TOML table by its dotted name."""
    tables = {name: kind} if name else {}
    for key, value in kind.model_fields.items():
        if isinstance(value.annotation, type) and issubclass(value.annotation, BaseModel):
            tables |= find_tables(value.annotation, f"{name}.{key}".lstrip("."))
    return tables


def describe_settings(kind: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Returns default and meaning of each setting: its TOML value, and the docstring below it in one line."""
    described = {}
    for part in kind.__mro__:  # a table's settings may stand in several classes
        if not issubclass(part, StrictSettings):
            break
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        for line, below in itertools.pairwise(definition.body):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                name = ast.unparse(line.target)
                if name in kind.model_fields:
                    default = json.dumps(kind.model_fields[name].default)
                    described[name] = default, " ".join(ast.literal_eval(below.value).split())
    return described


def read_settings(section: str) -> dict[str, tuple[str, str]]:
    """Returns default and meaning of each setting of a table; a `|` in a cell is written with a backslash."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip().replace(r"\|", "|") for cell in row] for row in rows]
    return {name.strip("`"): (default.strip("`"), meaning) for name, default, meaning in cells}


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    sections, tables = split_sections(read(SETTINGS)), find_tables(Recipe)
    assert {heading for heading in sections if heading.startswith("`[")} == {f"`[{name}]`" for name in tables}
    for name, kind in tables.items():
        described = describe_settings(kind)
        nested = {table.rpartition(".")[2] for table in tables if table.rpartition(".")[0] == name}
        assert {*described} == {*kind.model_fields} - nested, "each setting has a docstring"
        assert list(read_settings(sections[f"`[{name}]`"]).items()) == list(described.items())


# Words


def test_the_readme_is_short() -> None:
    assert len(read(README).split()) <= LONGEST_README


def find_sentences(text: str) -> set[str]:
    """Returns long sentences, cells and items of lists in lower case, without code blocks and marks."""
    prose = re.sub(r"^ *```.*?^ *```$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)|[`*\[]", "", prose)
    parts = re.split(r"\n\s*\n|\n#+ |\n\s*(?:[-*]|[0-9]+\.) |\|", prose)
    sentences = [sentence for part in parts for sentence in re.split(r"(?<=[.:;?!])\s", part)]
    plain = {" ".join(sentence.lower().split()) for sentence in sentences}
    return {sentence for sentence in plain if len(sentence) > LONG_SENTENCE}


def test_nothing_is_said_twice() -> None:
    recipes = [path.read_text("utf-8") for path in sorted((ROOT / "configs").glob("*.toml"))]
    comments = "\n".join(
        re.sub(r"^# ?", "", line) for text in recipes for line in text.splitlines() if line[:1] == "#"
    )
    places = {document: find_sentences(read(document)) for document in DOCUMENTS}
    places["configs/*.toml"] = find_sentences(comments)
    for one, other in itertools.combinations(places, 2):
        assert not places[one] & places[other], f"{one} and {other} say the same"
