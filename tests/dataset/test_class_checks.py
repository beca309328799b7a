"""dataset/class_checks.py: what looks wrong about a data set's classes; the names of public data sets look right."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from torchvision.models import ResNet18_Weights

import config
from dataset.class_checks import ClassProblem, find_misspellings, is_misspelling, judge_classes, split_words
from dataset.table import Table

NAMES = {  # joined by commas
    "voc": (
        "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
        "sheep,sofa,train,tvmonitor"
    ),
    "celeba": (
        "5_o_Clock_Shadow,Arched_Eyebrows,Attractive,Bags_Under_Eyes,Bald,Bangs,Big_Lips,Big_Nose,Black_Hair,"
        "Blond_Hair,Blurry,Brown_Hair,Bushy_Eyebrows,Chubby,Double_Chin,Eyeglasses,Goatee,Gray_Hair,Heavy_Makeup,"
        "High_Cheekbones,Male,Mouth_Slightly_Open,Mustache,Narrow_Eyes,No_Beard,Oval_Face,Pale_Skin,Pointy_Nose,"
        "Receding_Hairline,Rosy_Cheeks,Sideburns,Smiling,Straight_Hair,Wavy_Hair,Wearing_Earrings,Wearing_Hat,"
        "Wearing_Lipstick,Wearing_Necklace,Wearing_Necktie,Young"
    ),
    "nus-wide": (
        "airport,animal,beach,bear,birds,boats,book,bridge,buildings,cars,castle,cat,cityscape,clouds,computer,coral,"
        "cow,dancing,dog,earthquake,elk,fire,fish,flags,flowers,food,fox,frost,garden,glacier,grass,harbor,horses,"
        "house,lake,leaf,map,military,moon,mountain,nighttime,ocean,person,plane,plants,police,protest,railroad,"
        "rainbow,reflection,road,rocks,running,sand,sign,sky,snow,soccer,sports,statue,street,sun,sunset,surf,"
        "swimmers,tattoo,temple,tiger,tower,town,toy,train,tree,valley,vehicle,water,waterfall,wedding,whales,window,"
        "zebra"
    ),
    "chexpert": (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    ),
}
PUBLIC = {"coco": config.CLASSES, **{name: tuple(text.split(",")) for name, text in NAMES.items()}}


def make_table(classes: tuple[str, ...] | list[str], counts: dict[str, int] | None = None, usual: int = 20) -> Table:
    """Each class in its number of `counts` images, else `usual`; some show its neighbour, too; one shows none."""
    numbers = [(counts or {}).get(name, usual) for name in classes]
    targets = np.zeros((sum(numbers) + 1, len(classes)), dtype=np.int8)
    targets[np.arange(sum(numbers)), np.repeat(np.arange(len(classes)), numbers)] = 1
    for column, start in enumerate(np.cumsum([0, *numbers[:-1]])):
        if numbers[column] == usual and numbers[column - 1] == usual:
            targets[start : start + 2, column - 1] = 1
    return Table([f"{row}.jpg" for row in range(len(targets))], targets, tuple(classes))


def judge(classes: tuple[str, ...] | list[str], counts: dict[str, int] | None = None) -> list[ClassProblem]:
    return judge_classes({"train": make_table(classes, counts)})


# ---- no false alarm ----


@pytest.mark.parametrize("name", PUBLIC)
def test_the_names_of_public_data_sets_look_right(name: str) -> None:
    classes = tuple(PUBLIC[name])
    assert judge(classes) == []
    for rare in {*classes} - {"No Finding"}:  # each in turn the rarest, as in a part of the data set
        assert judge(classes, {rare: 1}) == []


def test_imagenets_names_look_right() -> None:
    """Two of them differ in a capital alone: a dog and a garment."""
    classes = ResNet18_Weights.DEFAULT.meta["categories"]
    assert {"Cardigan", "cardigan"} <= {*classes}
    assert judge(classes) == []
    texts = [split_words(name) for name in classes]
    alike = [pair for pair in itertools.combinations(texts, 2) if is_near(*pair) and is_misspelling(*pair)]
    assert {*map(frozenset, alike)} == {frozenset({"beaker", "beaver"}), frozenset({"hammer", "hamper"})}, (
        "and these only where one is seen once or twice"
    )


def is_near(left: str, right: str) -> bool:
    """Quick: whether one text may come of the other by one letter."""
    return abs(len(left) - len(right)) <= 1 and (left[:2] == right[:2]) and left != right


# ---- names ----


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Dog", "dog"),
        ("hot dog", "hot_dog"),
        ("hot dog", "hotdog"),
        ("traffic-light", "Traffic Light"),
        ("ﬁsh", "fish"),  # a ligature: NFKC
        ("Straße", "STRASSE"),
        ("cat", "cat\u200b"),  # a blank of no width
    ],
)
def test_names_that_differ_in_nothing_that_counts(left: str, right: str) -> None:
    (problem,) = judge((left, right, "person"), {right: 7})
    assert (problem.severity, problem.names) == ("warning", (left, right))
    assert f"{left!r} (20) and {right!r} (7); if they are one class, write one name" in problem.text


@pytest.mark.parametrize("pair", [("1_1", "11"), ("layer -1", "layer 10"), ("C", "C++"), ("-1", "1")])
def test_names_that_differ(pair: tuple[str, str]) -> None:
    assert judge((*pair, "person")) == []


def test_capitals_mean_something_only_where_a_good_part_of_the_names_has_them() -> None:
    small = [f"thing {number}" for number in range(150)]
    mixed = [name.title() if index % 2 else name for index, name in enumerate(small)]
    assert judge([*mixed, "cardigan", "Cardigan"]) == []
    assert len(judge([*mixed, "cardigan", "Cardigan"], {"Cardigan": 3})) == 1, "a slip of the one who labelled"
    assert len(judge([*small, "cardigan", "Cardigan"])) == 1
    assert len(judge([*mixed[:50], "cardigan", "Cardigan"])) == 1


@pytest.mark.parametrize(
    "wrong",
    ["perzon", "persn", "perrson", "pesron", "persons", "Perzon", "traffic lihgt", "traffic ligth", "dgo", "dogs"],
)
def test_a_rare_class_that_is_one_letter_from_a_frequent_one(wrong: str) -> None:
    classes = ("person", "dog", "traffic light", "sky", wrong)
    (problem,) = judge(classes, {wrong: 1})
    assert problem.names == (wrong,)
    right = next(name for name in classes if name[0] == wrong.lower()[0])
    assert re.search(rf"{wrong!r} \(1\) of {right!r} \(2\d\); correct the labels", problem.text)
    assert judge(classes, {wrong: 3}) == [], "which is no slip"
    assert judge(classes, {wrong: 1} | dict.fromkeys(classes[:4], 4)) == [], "the other is no frequent one"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("cat", "car"),
        ("plane", "plate"),
        ("bat", "boat"),
        ("grade 1", "grade 2"),
        ("type a", "type b"),
        ("racket", "packet"),
    ],
)
def test_other_words_and_numbers_are_no_misspellings(name: str, other: str) -> None:
    assert judge((name, other, "sky"), {name: 1}) == []


def test_joined_names_are_an_error() -> None:
    problem = judge(("cat, dog", "cat", "dog", "dog,Cat"))[0]
    assert (problem.severity, problem.names) == ("error", ("cat, dog", "dog,Cat"))
    assert "all parts of 2 class names are classes, too: 'cat, dog', 'dog,Cat'; in a CSV set LABEL_SEPARATOR = ','" in (
        problem.text
    )


@pytest.mark.parametrize(
    "joined",
    ["bread and butter"] + [f"bread{mark}butter" for mark in ("/", " & ", "-", "_", ":", "::", "~", "\\n", "<br>")],
)
def test_what_may_be_one_name_or_two_is_a_warning(joined: str) -> None:
    (problem,) = judge((joined, "bread", "butter"))
    assert (problem.severity, problem.names) == ("warning", (joined,))
    assert judge((joined, "bread", "milk")) == []


def test_parts_that_come_again_are_a_warning() -> None:
    (problem,) = judge(("cat|dog", "cat|bird", "salt"))
    assert (problem.severity, problem.names) == ("warning", ("cat|dog", "cat|bird"))
    assert "set LABEL_SEPARATOR = '|'" in problem.text
    assert judge(("cat, domestic", "dog/puppy", "日本 犬")) == []
    assert judge(("maillot, tank suit", "maillot", "tench, Tinca tinca", "goldfish, Carassius auratus")) == []


@pytest.mark.parametrize(
    "name", ["none", "None", "n/a", "no_label", "Nothing", "No Finding", "normal", "background", "-", "?", "kein"]
)
def test_a_class_that_says_that_there_is_none(name: str) -> None:
    (problem,) = judge((name, "cat", "dog"), {name: 5})
    assert (problem.severity, problem.names) == ("warning", (name,))
    assert f"set NO_LABEL_NAMES = ({name!r},)" in problem.text


def test_normal_is_a_class_as_any_other_where_it_comes_with_others_or_each_image_has_one_label() -> None:
    assert judge(("normal", "cat", "dog")) == [], "two of its images have a neighbour"
    one_each = Table(["a", "b", "c"], np.eye(3, dtype=np.int8), ("normal", "cat", "dog"))
    assert judge_classes({"train": one_each}) == []


# ---- counts ----


def test_classes_without_two_sides() -> None:
    """a is as it should be; b never present, c always, d never known, e never known to be absent."""
    targets = np.array([[1, 0, 1, -1, 1], [0, 0, 1, -1, -1]], dtype=np.int8)
    table = Table(["1.jpg", "2.jpg"], targets, ("a", "b", "c", "d", "e"))
    found = {problem.names: problem for problem in judge_classes({"train": table})}
    assert {names: problem.text.partition(";")[0] for names, problem in found.items()} == {
        ("b",): "1 class(es) without a positive in the training split: 'b'",
        ("c",): "1 class(es) without a negative in the training split: 'c'",
        ("d",): "1 class(es) without a known label in the training split: 'd'",
        ("e",): "no image in the training split is known to be without 1 of 5 classes: 'e' (is -1 'absent' here? Then "
        "set MINUS_ONE)",
    }
    assert all(problem.severity == "warning" for problem in found.values())


def test_without_a_training_split_all_splits_count() -> None:
    val, test = (Table(["1.jpg"], np.array([row], dtype=np.int8), ("a", "b")) for row in ([1, 0], [0, 1]))
    assert len(judge_classes({"val": val})) == 2
    assert judge_classes({"val": val, "test": test}) == []
    assert "in any split" in judge_classes({"val": val})[0].text
    assert len(judge_classes({"train": val, "test": test})) == 2, "of the training split is learned"


def test_ten_thousand_names_are_not_compared_each_with_all() -> None:
    """Each rare one has common neighbours; comparing all would take 25 million calls, and minutes."""
    classes = ["name" + "".join(letters) for letters in itertools.product("abcdefghij", repeat=4)]
    present = np.where(np.arange(10_000) % 2 == 0, 100, 1)
    (problem,) = find_misspellings(classes, present)
    assert problem.names == tuple(classes[1::2])
    assert "'nameaaab' (1) of 'nameaaaa' (100)" in problem.text
    assert len(problem.text) < 600
