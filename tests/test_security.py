"""What the code must never do, by its syntax: write past its writers, run what it reads, ask a network."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for name in ("data_prep", "pipeline") for path in (ROOT / name).rglob("*.py"))
WRITERS = [ROOT / "data_prep/storage/atomic.py", ROOT / "data_prep/storage/locks.py"]

WRITING_METHODS = {  # of paths, tables, arrays, pictures and modules, whatever the object is called
    *{
        "write_text",
        "write_bytes",
        "touch",
        "mkdir",
        "rmdir",
        "hardlink_to",
        "to_csv",
        "to_parquet",
        "to_pickle",
    },
    *{"tofile", "savetxt", "savez", "imwrite", "makedirs", "mkstemp", "mkdtemp", "NamedTemporaryFile"},
    *{"TemporaryDirectory", "copyfile", "copytree", "rmtree", "save_file", "to_json", "to_html"},
}
INTO_MEMORY = {"savefig", "save", "dump"}  # allowed into a stream that is not a file
STREAMS = {"buffer", "stream"}
ALLOWED = {  # a call of one of these names, in one of these modules, writes nothing or nothing half
    "to_csv": {"image_sources.py"},  # to a text
    "TemporaryDirectory": {"dry_run.py"},  # gone when the estimate is made
}
UNSAFE = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "yaml",
    "urllib",
    "requests",
    "http",
    "socketserver",
    "ftplib",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module with the last part of the name that is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            yield (
                (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")),
                node,
            )


def imported(path: Path) -> set[str]:
    """The outside packages that a module imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def opens_for_writing(call: ast.Call) -> bool:
    """Whether a call of `open` names a mode that is not plain reading."""
    words = [
        word.value
        for word in [*call.args, *(k.value for k in call.keywords)]
        if isinstance(word, ast.Constant)
    ]
    modes = [word for word in words if isinstance(word, str) and word and set(word) <= set("rwxabt+")]
    return any(set(mode) & set("wxa+") for mode in modes)


def find_writers(path: Path) -> list[str]:
    """Calls that write a file by themselves."""
    found = []
    for name, call in calls(path):
        is_method = isinstance(call.func, ast.Attribute)
        is_ours = not is_method or ast.unparse(call.func).startswith("atomic.")
        into_stream = any(getattr(argument, "id", "") in STREAMS for argument in call.args)
        is_allowed = is_ours or path.name in ALLOWED.get(name, set())
        writes = name in WRITING_METHODS and not is_allowed
        writes |= name == "open" and opens_for_writing(call)
        writes |= name in INTO_MEMORY and is_method and not into_stream and len(call.args) > 0
        if writes:
            found.append(f"{path.name}:{call.lineno} {name}")
    return found


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path not in WRITERS], ids=lambda path: path.stem
)
def test_no_other_module_writes_files(path: Path) -> None:
    allowed = {"weights_file.py": "save"}  # safetensors.torch.save returns bytes
    assert [found for found in find_writers(path) if not found.endswith(allowed.get(path.name, "\0"))] == []


@pytest.mark.parametrize(
    ("program", "count"),
    [
        ("path.write_text('a')", 1),
        ("write_text(path, 'a')", 0),
        ("open(path, 'w')", 1),
        ("path.open('ab')", 1),
        ("path.open(mode='x')", 1),
        ("path.open('rb')", 0),
        ("table.to_csv(path)", 1),
        ("np.save(path, array)", 1),
        ("torch.save(state, buffer)", 0),
        ("torch.save(state, path)", 1),
        ("figure.savefig('a.png')", 1),
    ],
)
def test_the_search_for_writers_finds_them(tmp_path: Path, program: str, count: int) -> None:
    path = tmp_path / "module.py"
    path.write_text(program)
    assert len(find_writers(path)) == count


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_that_is_read_is_executed_and_no_shell_or_network_is_used(path: Path) -> None:
    assert imported(path) & UNSAFE == set()
    if path.name != "doctor.py":  # which asks this very Python
        assert "subprocess" not in imported(path)
    for name, call in calls(path):
        assert name not in {"system", "popen", "__import__"}, f"{path.name}:{call.lineno}"
        assert not (isinstance(call.func, ast.Name) and name in {"eval", "exec"}), (
            f"{path.name}:{call.lineno}"
        )
        options = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        assert not options.get("shell")
        assert not options.get("allow_pickle")
        is_torch_load = ast.unparse(call.func) == "torch.load"
        assert not is_torch_load or options.get("weights_only") is True, f"{path.name}:{call.lineno}"


OPENERS = {"safe_open", "load_file", "load", "imread"}
"""What opens a file by the name that it is given: of paths that `files` has looked at."""
LOOKED_AT = {"require_own", "require_input", "BytesIO", "stream"}
READS = {  # a call of one of these names reads nothing that may be a pipe or a link, in these modules alone
    "open": {"files.py", "byte_source.py", "dicom.py", "raster.py"},  # ByteSource.open, which asks `files`
    "read_text": {"resource_limits.py"},  # of the system's own
    "read_bytes": {"csv_rows.py"},  # of a URL
}


def find_readers(path: Path) -> list[str]:
    """Calls that open a file without a look at what it is, or decode an image of any format."""
    found = []
    for name, call in calls(path):
        text, options = ast.unparse(call.func), {k.arg for k in call.keywords}
        first = ast.unparse(call.args[0]).partition("(")[0] if call.args else ""
        if text in {"Pillow.open", "Image.open"}:
            reads = "formats" not in options
        elif text in {"torch.load", "np.load"} or name in OPENERS - {"load"}:
            reads = first.rpartition(".")[2] not in LOOKED_AT
        elif name == "read_csv":
            reads = first != "io.BytesIO"
        else:
            reads = name in {"open", "read_text", "read_bytes"} and path.name not in READS[name]
        if reads:
            found.append(f"{path.name}:{call.lineno} {text}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_other_module_opens_what_it_has_not_looked_at(path: Path) -> None:
    assert find_readers(path) == []


@pytest.mark.parametrize(
    ("program", "count"),
    [
        ("open(path)", 1),
        ("path.open()", 1),
        ("path.read_bytes()", 1),
        ("path.read_text('utf-8')", 1),
        ("Image.open(stream)", 1),
        ("Image.open(stream, formats=FORMATS)", 0),
        ("cv2.imread(path)", 1),
        ("pd.read_csv(path)", 1),
        ("pd.read_csv(io.BytesIO(read_own(path)))", 0),
        ("torch.load(path, weights_only=True)", 1),
        ("torch.load(require_input(path), weights_only=True)", 0),
        ("safe_open(path)", 1),
        ("np.load(require_own(path))", 0),
        ("open_own(path)", 0),
    ],
)
def test_the_search_for_readers_finds_them(tmp_path: Path, program: str, count: int) -> None:
    path = tmp_path / "module.py"
    path.write_text(program)
    assert len(find_readers(path)) == count


def test_bandit_would_see_the_same_modules() -> None:
    """A module that moves out of the two packages would escape these searches."""
    others = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    assert others - {"data_prep", "pipeline", "tests"} <= {"build", "dist"}
