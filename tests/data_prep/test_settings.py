"""Settings: strict, with every problem named at once; overrides; TOML there and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from data_prep.cache.folder import CacheSettings
from data_prep.errors import UserError
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.settings import (
    StrictSettings,
    differences,
    dump_settings,
    load_settings,
    suggest_settings,
    validate_settings,
    write_overrides,
)


class Trainer(StrictSettings):
    """A stand-in for the other verbs' tables."""

    other_names: ClassVar[Mapping[str, str]] = {"rate": "lr speed"}
    name: str = "baseline"
    rate: float = 1e-3
    epochs: int = 3
    limit: float | None = None
    tags: tuple[Literal["red", "green", "blue"], ...] = ()
    prepare: PrepareSettings = PrepareSettings()


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_settings(Trainer, path, overrides)
    return str(error.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_without_a_file_every_setting_has_its_default() -> None:
    assert load_settings(Trainer, None) == Trainer()
    assert PrepareSettings().side == 512


@pytest.mark.parametrize(
    ("override", "name", "hint"),
    [
        ("epoch=3", "epoch", "did you mean epochs?"),
        ("prepare.sid=64", "prepare.sid", "did you mean prepare.side"),
        ("prepare.codecs.exactly=true", "prepare.codecs.exactly", "did you mean prepare.codecs.exact?"),
        ("side=64", "side", "did you mean prepare.side?"),
        ("prepare.epochs=3", "prepare.epochs", "did you mean epochs?"),
        ("prepare.resolution=3", "prepare.resolution", "did you mean prepare.side?"),
        ("lr=3", "lr", "did you mean rate?"),
        ("prepare.codecs.qqq=1", "prepare.codecs.qqq", "the nearest names are "),
    ],
)
def test_a_misspelt_or_misplaced_setting_is_named_with_its_path(override: str, name: str, hint: str) -> None:
    message = refusal(override)
    assert f"unknown setting {name}: {hint}" in message


@pytest.mark.parametrize("name", ["e", "prepare.qqq", "prepare.codecs.fit", "rate.x.y", "l", "pre.side"])
def test_no_more_than_three_settings_are_named_and_each_is_there(name: str) -> None:
    found, _ = suggest_settings(Trainer, name)
    assert 0 < len(found) <= 3
    settings = Trainer().model_dump()
    for path in found:
        value: Any = settings
        for part in path.split("."):
            value = value[part]
        assert not isinstance(value, dict)


def test_a_misspelt_table_is_told_once(tmp_path: Path) -> None:
    message = refusal(path=write(tmp_path, "[prepaer]\nside = 32\nfit = 'stretch'\n"))
    assert message.endswith("recipe.toml: unknown table prepaer: did you mean prepare?")


def test_what_set_has_brought_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs = 2\nrates = 3\n")
    message = refusal("epochs=5", "epochs=many", "prepare.side=1", path=path)
    epochs, side, file = message.split("; ")
    assert file == f"{path}: unknown setting rates: did you mean rate?"
    assert epochs.startswith("--set epochs=many: epochs takes a whole number")
    assert side.startswith(
        "--set prepare.side=1: prepare.side takes a whole number (at least 16, at most 4096)"
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochs=many", 'epochs takes a whole number, not "many": for example epochs=3'),
        ("epochs=2.5", "epochs takes a whole number, not 2.5: for example epochs=3"),
        ("rate=fast", 'rate takes a number, not "fast": for example rate=0.001'),
        ("tags=blue", 'tags takes a list of "red", "green" or "blue", not "blue": for example tags=["blue"]'),
        ("tags=[]", ""),
        ('tags=["pink"]', 'not "pink": for example tags=["red"]'),
        ("name=3", 'name takes text, not 3: for example name="baseline"'),
        ("limit=x", 'limit takes a number, not "x"'),
        (
            "prepare.codecs.exact=maybe",
            'takes true or false, not "maybe": for example prepare.codecs.exact=false',
        ),
        (
            "prepare.fit=crop",
            'takes "letterbox" or "stretch", not "crop": for example prepare.fit="letterbox"',
        ),
        ("prepare=3", "prepare takes a table of settings (side, fit, bit_depth, codecs), not 3"),
    ],
)
def test_what_a_setting_takes_is_told_in_plain_words_with_an_example(override: str, sentence: str) -> None:
    if not sentence:
        assert load_settings(Trainer, None, [override]) == Trainer()
    else:
        assert refusal(override).endswith(sentence)


def test_overrides_can_be_written_that_make_two_settings_equal() -> None:
    ours = PrepareSettings(side=64, fit="stretch", codecs=CodecSettings(exact=True))
    written = write_overrides(ours, PrepareSettings(), table="prepare")
    assert written == "--set prepare.side=64 --set prepare.fit=stretch --set prepare.codecs.exact=true"
    assert load_settings(Trainer, None, written.split()[1::2]).prepare == ours
    assert write_overrides(ours, ours, table="prepare") == ""


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = "epochs = 'many'\nrat = 1\n[prepare]\nside = 5\n[prepare.codecs]\noversampling = 99.0\n"
    message = refusal(path=write(tmp_path, text))
    for part in ("recipe.toml: epochs takes", "did you mean rate?", "prepare.side takes", "oversampling"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_what_is_no_finite_number_is_refused(number: str) -> None:
    assert f"rate takes a number, not {number}" in refusal(f"rate={number}")
    assert "oversampling" in refusal(f"prepare.codecs.oversampling={number}")


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("epochs=7", "epochs", 7),
        ("rate=1e-5", "rate", 1e-5),
        ("rate=2", "rate", 2.0),
        ("name=vit small = good", "name", "vit small = good"),
        ("name='007'", "name", "007"),
        ("name=", "name", ""),
        ("limit=0.5", "limit", 0.5),
    ],
)
def test_overrides_are_toml_values_or_else_text(override: str, name: str, value: Any) -> None:
    assert getattr(load_settings(Trainer, None, [override]), name) == value


def test_overrides_reach_into_tables_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs = 2\n[prepare]\nside = 64\n")
    settings = load_settings(Trainer, path, ["prepare.codecs.exact=true", "epochs=5", "epochs=6"])
    prepare = PrepareSettings(side=64, codecs=CodecSettings(exact=True))
    assert settings == Trainer(epochs=6, prepare=prepare)


@pytest.mark.parametrize("override", ["epochs", "=3", ".epochs=3", "prepare..side=3", ""])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    assert "name.name=value" in refusal(override)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    assert "is a value, not a table" in refusal("epochs.x=1", path=write(tmp_path, "epochs = 2\n"))


def test_text_for_a_number_and_a_number_for_a_table_are_refused() -> None:
    assert 'not "3 or so"' in refusal("epochs=3 or so")
    assert "prepare takes a table" in refusal("prepare=3")


def test_a_rule_of_several_settings_is_told_without_their_values() -> None:
    class Bounds(StrictSettings):
        low: int = 0
        high: int = 9

        @model_validator(mode="after")
        def _check_order(self) -> "Bounds":
            if self.low > self.high:
                raise ValueError(f"bounds.low {self.low} must not exceed bounds.high {self.high}")
            return self

    class Ruler(StrictSettings):
        bounds: Bounds = Bounds()

    with pytest.raises(UserError) as error:
        load_settings(Ruler, None, ["bounds.low=10"])
    assert str(error.value) == "--set bounds.low=10: bounds.low 10 must not exceed bounds.high 9"
    with pytest.raises(UserError, match=r"bounds\.low takes a whole number, not \{'x': 1\}"):
        load_settings(Ruler, None, ["bounds.low.x=1"])


def test_a_broken_or_absent_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read as TOML" in refusal(path=write(tmp_path, "epochs = = 2\n"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as TOML" in refusal(path=tmp_path / "binary.toml")
    assert "does not exist" in refusal(path=tmp_path / "absent.toml")
    assert "cannot be read" in refusal(path=tmp_path)


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    epochs=st.integers(-(2**63), 2**63 - 1),
    limit=st.none() | st.floats(0, 1),
    side=st.integers(16, 4096),
    exact=st.booleans(),
)
def test_toml_there_and_back_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    rate: float,
    epochs: int,
    limit: float | None,
    side: int,
    exact: bool,
) -> None:
    prepare = PrepareSettings(side=side, codecs=CodecSettings(exact=exact))
    trainer = Trainer(name=name, rate=rate, epochs=epochs, limit=limit, prepare=prepare)
    path = tmp_path_factory.mktemp("settings") / "recipe.toml"
    path.write_bytes(dump_settings(trainer).encode())
    assert load_settings(Trainer, path) == trainer


def test_differences_name_every_leaf() -> None:
    ours = Trainer(epochs=1, prepare=PrepareSettings(codecs=CodecSettings(exact=True)))
    assert differences(ours, ours) == []
    assert differences(ours, Trainer(), ignored=["epochs"]) == ["prepare.codecs.exact is True, not False"]
    assert differences(ours, Trainer()) == [
        "epochs is 1, not 3",
        "prepare.codecs.exact is True, not False",
    ]


def test_settings_cannot_be_changed_and_defaults_are_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PrepareSettings().side = 3  # type: ignore[misc]
    with pytest.raises(UserError, match=r'split takes "train" or "test", not "validation"'):
        validate_settings(CacheSettings, {"split": "validation", "prepare": {}}, "test")
    with pytest.raises(UserError, match="test: setting split is missing; setting prepare is missing"):
        validate_settings(CacheSettings, {}, "test")
