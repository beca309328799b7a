"""dataset/json_files.py: whatever a JSON file holds, it gives plain values, or one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset import json_files, text_files
from dataset.json_files import parse_json, read_json, to_json
from utils import InputError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,\n "a": 2}', ": the key 'a' stands twice in one object: remove one"),
        ('{"b": [{"' + "k" * 999 + '": 1, "' + "k" * 999 + '": 1}]}', f": the key '{'k' * 80}' stands twice"),
        ("[1, NaN]", ": NaN stands in it, which is not JSON: write null, or a number"),
        ('{"a": -Infinity}', ": -Infinity stands in it, which is not JSON"),
        ("[" * 100_000, ": its lists or objects are nested too deeply"),
        ('{"a":' * 100_000, ": its lists or objects are nested too deeply"),
        ("[1, " + "7" * 5000 + "]", ": an integer in it has thousands of digits"),
        ("[1,\n2,]", ":2: "),
        ("", ":1: Expecting value: this is not JSON"),
        (b'{"a": "\xff"}', ": this is not UTF-8 text"),
    ],
    ids=["twice", "long key", "NaN", "infinity", "deep list", "deep object", "digits", "comma", "empty", "bytes"],
)
def test_what_is_no_json_is_one_line_with_the_file(text: str | bytes, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse_json(text, "a.json")
    assert str(error.value).startswith(f"a.json{reason}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_plain_values_come_as_they_are(tmp_path: Path) -> None:
    values = {"a": [1, -2.5, 1e300, True, None, "é\ud800", 10**4000], "b": {"a": {}, "c": []}}
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert read_json(tmp_path / "a.json") == values
    assert parse_json(b"\xef\xbb\xbf[1]", "a.json") == [1]


def test_names_are_written_as_they_are(tmp_path: Path) -> None:
    values = {"Löwe 狮 🦁": ["a\nb\x1b", "caf\udce9", "\ud800", "\x9b\u202e\u2028\x7f", 0.5, None, True]}
    for indent in (None, 1):
        text = to_json(values, indent)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")  # which half of a pair of surrogates would refuse
        assert read_json(tmp_path / "a.json") == values
        assert '"Löwe 狮 🦁": [' in text
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert to_json(["a", {"b": 1}], 1) == json.dumps(["a", {"b": 1}], indent=1)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no room: nothing was written
    for read in (read_json, text_files.read_text):
        with pytest.raises(InputError, match=r"a.json has [\d,]+ bytes: more than [\d,]+ is not read"):
            read(path)
    path.write_text("[]" + " " * 98)
    monkeypatch.setattr(json_files, "SMALL_BYTES", 100)
    assert read_json(path) == []
    monkeypatch.setattr(json_files, "SMALL_BYTES", 99)
    with pytest.raises(InputError, match=r"a\.json has 100 bytes: more than 99"):
        read_json(path)
