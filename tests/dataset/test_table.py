"""dataset/table.py: rows and columns stay together when tables are selected from, joined and mapped."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.class_names import show_names
from dataset.table import Table, join_tables, map_classes
from utils import InputError

TABLE = Table(["/d/a.jpg", "/d/b.jpg"], np.array([[1, 0, -1], [0, 1, 1]], np.int8), ("cat", "dog", "emu"), ("s", ""))


def test_selected_rows_in_their_order() -> None:
    rows = TABLE.select([1, 0, 1])
    assert rows.paths == ["/d/b.jpg", "/d/a.jpg", "/d/b.jpg"]
    assert rows.targets.tolist() == [[0, 1, 1], [1, 0, -1], [0, 1, 1]]
    assert rows.groups == ("", "s", "")
    assert len(TABLE.select([])) == 0
    assert TABLE.select([]).targets.shape == (0, 3)
    assert TABLE.select(np.array([1])).paths == TABLE.select(range(1, 2)).paths == ["/d/b.jpg"]


def test_columns_follow_the_names() -> None:
    mapped = map_classes(TABLE, ["emu", "cat", "dog"])
    assert mapped.classes == ("emu", "cat", "dog")
    assert mapped.targets.tolist() == [[-1, 1, 0], [1, 0, 1]]
    assert mapped.targets.flags.c_contiguous
    assert mapped.paths == TABLE.paths
    assert mapped.groups == TABLE.groups
    assert map_classes(TABLE, TABLE.classes) is TABLE


def test_other_names_are_refused_with_what_differs() -> None:
    with pytest.raises(InputError) as error:
        map_classes(TABLE, ["dog", "emu"])
    assert str(error.value) == "the 3 classes of the data set and the 2 of the model differ; only of the data set: cat"
    many = [f"class{number}" for number in range(14)]
    with pytest.raises(InputError) as error:
        map_classes(TABLE, ["dog", *many], "here", "there")
    assert str(error.value) == (
        "the 3 classes here and the 15 there differ; only here: cat, emu; only there: class0, class1, class2, class3, "
        "class4, class5, class6, class7, class8, class9, and 4 more"
    )


def test_ten_names_are_shown_and_the_rest_is_counted() -> None:
    names = [f"c{number}" for number in range(10_000)]
    assert show_names([]) == ""
    assert show_names(names[:10]) == "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9"
    assert show_names(names) == "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, and 9,990 more"
    assert show_names(names[:3], most=2) == "c0, c1, and 1 more"


def test_joined_tables_have_the_first_ones_columns() -> None:
    other = Table(["/e/a.jpg"], np.array([[1, -1, 0]], np.int8), ("dog", "emu", "cat"))
    joined = join_tables([TABLE, other])
    assert joined.paths == ["/d/a.jpg", "/d/b.jpg", "/e/a.jpg"]
    assert joined.targets.tolist() == [[1, 0, -1], [0, 1, 1], [0, 1, -1]]
    assert joined.classes == TABLE.classes
    assert joined.groups == ("s", "", "")
    assert join_tables([other, other]).groups is None
    assert join_tables([TABLE]) is TABLE
    with pytest.raises(InputError, match=r"beside /e/a\.jpg and the 3 beside /d/a\.jpg differ; only beside /e/.*: gnu"):
        join_tables([TABLE, Table(["/e/a.jpg"], other.targets, ("dog", "emu", "gnu"))])


def test_a_fingerprint_of_a_table_without_groups_is_as_it_always_was() -> None:
    """Checkpoints are found by it."""
    import hashlib

    plain = Table(TABLE.paths, TABLE.targets, TABLE.classes)
    digest = hashlib.sha256(b"cat\ndog\nemu\n\na.jpg\nb.jpg" + TABLE.targets.tobytes())
    assert plain.fingerprint() == digest.hexdigest()[:16] != TABLE.fingerprint()
