"""Object storage: few requests, whole or refused answers, nothing that is secret, nothing for local paths."""

import errno
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.rsna import image_files
from data_prep.rsna.exam_table import locate_images, read_exams
from data_prep.storage import object_store, places
from data_prep.storage.places import Download, RemoteFile, Url, to_image_path, to_place
from tests.data_prep.data_folder import make_data
from tests.object_store import SECRET, Store

CONTENT = bytes(range(256)) * 4096  # 1 MiB
FIRST = places.FIRST_BYTES + len(CONTENT) // places.FIRST_SHARE
each_protocol = pytest.mark.parametrize("protocol", ["s3", "http"])


def put(store: Store, protocol: str, content: bytes = CONTENT) -> RemoteFile:
    """A file in the store, as a listing would find it."""
    store.put("data/a.dcm", content)
    file = (Url(getattr(store, protocol)) / "a.dcm").find()
    store.forget()
    return file


# Addresses


@pytest.mark.parametrize("text", ["data", "/data/rsna", "C:/data", "a:b", "s3:/bucket", "./s3"])
def test_paths_are_paths(text: str) -> None:
    assert to_place(text) == Path(text)


def test_a_file_url_is_a_path() -> None:
    assert to_place("file:///data/rsna") == Path("/data/rsna")


@pytest.mark.parametrize("text", ["s3://bucket/data", "gs://bucket", "https://host/data/"])
def test_other_urls_are_kept_as_they_are(text: str) -> None:
    assert str(to_place(text)) == text
    assert str(to_place(text) / "train.csv") == f"{text.rstrip('/')}/train.csv"


@pytest.mark.parametrize(
    "text",
    [
        f"https://ann:{SECRET}@host/data",
        f"https://{SECRET}@host/data",
        f"s3://key:{SECRET}@bucket/data",
        f"s3://key:{SECRET}/more@bucket/data",
        f"https://host/data?X-Amz-Signature={SECRET}",
        f"https://host/data#{SECRET}",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError, match="holds a user name, password or query") as error:
        to_place(text)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("text", ["HTTPS://ann:secret@host/data", "simplecache::s3://key:secret@bucket"])
def test_an_address_of_another_form_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError, match="begins with its protocol in small letters") as error:
        to_place(text)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_no_absent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec calls both "not found"."""
    monkeypatch.setattr("data_prep.storage.object_store.FIRST_WAIT_S", 0.0)
    with socket.socket() as listener:  # bound, but it does not listen
        listener.bind(("127.0.0.1", 0))
        url = Url(f"http://127.0.0.1:{listener.getsockname()[1]}/data") / "train.csv"
        with pytest.raises(OSError, match="broke, 4 times") as error:
            url.find()
    assert not isinstance(error.value, FileNotFoundError)


def test_an_unknown_protocol_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nosuch:// is not storage that fsspec knows"):
        Url("nosuch://bucket/data").is_file()


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    import_module("fsspec.registry")
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    object_store._connect.cache_clear()
    with pytest.raises(UserError, match=r'pip install "mammo-vit\[storage\]"'):
        Url("s3://bucket/data").is_file()


def test_local_data_never_brings_fsspec_in(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 2)
    program = """
import sys
from importlib import import_module
from pathlib import Path
from tests.data_prep.data_folder import prepare_folder
from data_prep.cache.folder import Cache
from data_prep.cache.verify import verify
data, cache = map(Path, sys.argv[1:])
assert prepare_folder(data, cache).num_prepared == 2
assert verify(Cache(cache), data, workers=0).problems == []
assert not {"fsspec", "s3fs", "aiohttp", "botocore"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, data, tmp_path / "cache"], check=True)


# Reading


@each_protocol
def test_what_is_near_the_beginning_takes_one_request(store: Store, protocol: str) -> None:
    download = Download(put(store, protocol))
    assert download.read(0, 100) == CONTENT[:100]
    assert download.read(100, FIRST) == CONTENT[100:FIRST]
    assert (download.num_requests, store.count("GET")) == (1, 1)
    assert store.num_bytes == len(download.content) == FIRST


@each_protocol
def test_the_rest_comes_in_one_request_too(store: Store, protocol: str) -> None:
    download = Download(put(store, protocol))
    download.read(0, 100)
    assert download.read(10, 10**9) == CONTENT[10:]
    assert download.num_requests == store.count("GET") == 2
    assert store.num_bytes == len(CONTENT)


def test_a_file_that_is_asked_for_at_once_takes_one_request(store: Store) -> None:
    assert Download(put(store, "s3")).read(0, len(CONTENT)) == CONTENT
    assert store.count("GET") == 1


def test_an_empty_file_takes_none(store: Store) -> None:
    assert Download(put(store, "s3", b"")).read(0, 100) == b""
    assert store.requests == []


@each_protocol
@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "cut", "short"])
def test_what_may_pass_is_tried_again(store: Store, protocol: str, fault: str) -> None:
    download = Download(put(store, protocol))
    store.faults = [fault, fault, "", fault]
    assert download.read(0, 1) == CONTENT[:1]
    assert download.read(0, len(CONTENT)) == CONTENT
    assert store.faults == []
    assert store.count("GET") == 5


def test_the_pauses_between_tries_double(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pauses = put(store, "s3"), []
    monkeypatch.undo()
    monkeypatch.setattr("time.sleep", lambda seconds: pauses.append(seconds) if seconds else None)
    store.faults = ["503"] * object_store.NUM_TRIES
    with pytest.raises(OSError, match="answered 503, 4 times"):
        Download(file).read(0, 1)
    assert pauses == [0.5, 1.0, 2.0]


@each_protocol
def test_an_answer_that_drips_is_given_up(
    store: Store, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "DEADLINE_S", 0.5)
    file = put(store, protocol)
    store.faults = ["drip"] * 9
    with pytest.raises(OSError, match="did not answer in time"):
        Download(file).read(0, len(CONTENT))
    assert len(store.faults) >= 7, "the time is for all tries together"


@each_protocol
def test_an_answer_without_an_end_is_given_up(
    store: Store, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MAX_BYTES", 2**22)
    file = put(store, protocol)
    for read in (lambda: Download(file).read(0, 1), to_place(file.url).read_bytes):
        store.faults = ["endless"] * 9
        with pytest.raises(OSError, match="it is longer than 4,194,304 bytes"):
            read()
        assert len(store.faults) == 8, "it is not asked for again"


def test_a_redirection_is_followed_on_the_same_server_alone(store: Store) -> None:
    file = put(store, "http")
    store.faults = [f"http://{store.address}"]
    assert Download(file).read(0, len(CONTENT)) == CONTENT
    for elsewhere in ("http://127.0.0.2:1", "URI http://127.0.0.2:1"):
        store.faults = [elsewhere] * 9
        with pytest.raises(OSError, match="it leads to another server, which is not asked"):
            Download(file).read(0, 1)
        assert len(store.faults) == 8, "it is not asked for again"


@each_protocol
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("500", "the store answered 500, 4 times"),
        ("drop", "the connection to the store broke, 4 times"),
        ("short", "the connection to the store broke, 4 times"),
    ],
)
def test_what_does_not_pass_is_given_up(store: Store, protocol: str, fault: str, sentence: str) -> None:
    file = put(store, protocol)
    store.faults = [fault] * 9
    with pytest.raises(OSError, match=sentence) as error:
        Download(file).read(0, 1)
    most = object_store.NUM_TRIES * (2 if fault == "drop" else 1)  # where aiohttp asks twice by itself
    assert object_store.NUM_TRIES <= store.count("GET") <= most
    assert error.value.__cause__ is None


@each_protocol
@pytest.mark.parametrize(
    ("fault", "kind"), [("403", PermissionError), ("404", FileNotFoundError), ("400", OSError)]
)
def test_what_cannot_pass_is_tried_once(store: Store, protocol: str, fault: str, kind: type[OSError]) -> None:
    file = put(store, protocol)
    store.faults = [fault]
    with pytest.raises(kind) as error:
        Download(file).read(0, 1)
    assert store.count("GET") == 1
    assert "secret" not in str(error.value)


def test_a_server_without_ranges_sends_all_once(store: Store) -> None:
    download = Download(put(store, "http"))
    store.faults = ["whole"]
    assert download.read(5, 10) == CONTENT[5:10]
    assert download.read(0, len(CONTENT)) == CONTENT
    assert store.count("GET") == 1


def test_a_server_that_forgets_about_ranges_mixes_nothing(store: Store) -> None:
    download = Download(put(store, "http"))
    store.faults = ["", "whole"]
    download.read(0, 1)
    assert download.read(0, len(CONTENT)) == CONTENT


@each_protocol
def test_a_file_that_changes_between_two_requests_is_refused(store: Store, protocol: str) -> None:
    download = Download(put(store, protocol))
    download.read(0, 1)
    store.put("data/a.dcm", CONTENT[::-1])
    with pytest.raises(OSError, match="it changed while it was read") as error:
        download.read(0, len(CONTENT))
    assert error.value.errno == errno.ESTALE


def test_a_file_that_has_changed_since_it_was_listed_is_refused(store: Store) -> None:
    """By S3, which is told the version; over plain HTTP the first request takes what there is."""
    file = put(store, "s3")
    store.put("data/a.dcm", CONTENT[::-1])
    with pytest.raises(OSError, match="it changed while it was read"):
        Download(file).read(0, 1)


def test_keys_that_are_absent_are_said_to_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setattr("fsspec.spec.AbstractFileSystem.cachable", False)
    object_store._connect.cache_clear()
    with pytest.raises(OSError, match="no credentials for the store"):
        Url(store.s3).find()
    object_store._connect.cache_clear()


# Looking for images


@each_protocol
def test_the_same_images_are_found_as_in_a_folder(store: Store, tmp_path: Path, protocol: str) -> None:
    data = make_data(tmp_path / "data")
    (data / "train_images/5/90.dcm").rename(data / "train_images/5/90")
    (data / "train_images/7/104.PNG").write_bytes(b"a second choice")
    (data / "train_images/7/111.dcm").unlink()
    (data / "train_images/7/note.txt").write_text("no image")
    (data / "train_images/9/deeper").mkdir()
    (data / "train_images/9/deeper/125.dcm").write_bytes(b"too deep")
    store.upload(data)
    url = Url(getattr(store, protocol))
    exams = read_exams(url, "train")
    assert exams.equals(read_exams(data, "train"))
    found = locate_images(exams, url, "train").tolist()
    expected = locate_images(exams, data, "train").tolist()
    places = [str(file) if file is None else file.url.removeprefix(f"{url}/") for file in found]
    assert places == [str(path and path.relative_to(data)) for path in expected]
    assert places.count("None") == 1
    assert [file.size for file in found if file] == [path.stat().st_size for path in expected if path]


def test_many_patients_are_listed_at_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(make_data(tmp_path / "data"))
    exams = read_exams(Url(store.s3), "train")
    one_by_one = locate_images(exams, Url(store.s3), "train")
    store.forget()
    monkeypatch.setattr(image_files, "FEW_PATIENTS", 3)
    assert locate_images(exams, Url(store.s3), "train").equals(one_by_one)
    assert len(store.requests) == 1


def test_a_store_that_does_not_tell_is_no_empty_folder(store: Store, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    exams = read_exams(data, "train")
    store.faults = ["403"] * 4
    with pytest.raises(UserError, match=r"cannot look for images in s3://.*\(the store denies access\)"):
        locate_images(exams, Url(store.s3), "train")


@each_protocol
def test_a_folder_without_a_table_is_a_user_error(store: Store, protocol: str) -> None:
    with pytest.raises(UserError, match=r"has no train\.csv"):
        read_exams(Url(getattr(store, protocol)), "train")


@each_protocol
def test_a_table_that_is_denied_is_a_user_error(store: Store, protocol: str) -> None:
    store.put("data/train.csv", b"patient_id")
    store.faults = ["403"] * 3
    with pytest.raises(UserError, match=r"train\.csv \(the store denies access\)"):
        read_exams(Url(getattr(store, protocol)), "train")


def test_one_file_can_be_named(store: Store) -> None:
    file = put(store, "s3")
    assert to_image_path(file.url) == file
    assert (file.name, file.stem, file.suffix, file.folder) == ("a.dcm", "a", ".dcm", "data")
    with pytest.raises(UserError, match="it is not there"):
        to_image_path(f"{store.s3}/b.dcm")
