"""Images that are not where a list says: what is taken for them, what is only named, what is not confused."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from dataset.formats.base import ReadOptions
from dataset.image_finder import ImageFinder
from dataset_readers import read_dataset
from utils import InputError

KEEP = ReadOptions(keep_missing=True)


def place(root: Path, *names: str) -> None:
    """Small images of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, "JPEG")


def write_list(root: Path, *paths: str, name: str = "train.csv") -> None:
    """A table with a label for each path, present in every other image."""
    lines = [f'"{path.replace(chr(34), chr(34) * 2)}",{number % 2}' for number, path in enumerate(paths)]
    (root / name).write_text("\n".join(["image_path,cat", *lines]) + "\n", encoding="utf-8")


def read_names(root: Path, options: ReadOptions | None = None) -> dict[str, int]:
    """{path from the root on: label} of the train split."""
    table = read_dataset(root, split="train", options=options)
    return {
        path.removeprefix(f"{root}/"): row[0] for path, row in zip(table.paths, table.targets.tolist(), strict=True)
    }


def test_a_csv_needs_no_word_about_blanks_and_the_folder_images(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg", "images/b.jpg")
    for listed in ("{}.jpg", " images/{}.jpg", "images/{}.jpg "):  # the cases bare_names and space_after_comma
        write_list(tmp_path, *(listed.format(name) for name in "ab"))
        assert read_names(tmp_path) == {"images/a.jpg": 0, "images/b.jpg": 1}


NUMBERED = [f"img_{number:02}" for number in range(4)]


@pytest.mark.parametrize(
    ("listed", "there", "says"),
    [
        ("{}.jpg", "photos/{}.jpg", "in another folder"),  # in images/ the csv reader looks itself
        ("images/{}", "images/{}.jpg", "with another ending"),  # no_extension
        ("images/{}.jpg", "images/{}.JPG", "with other capital letters"),  # upper_JPG
        ("images/{}.jpg", "images/{}.png", "with another ending"),
        ("images/{}.jpg", "images/{}.JPEG", "with another ending"),
        ("images/{}.jpg", "images/{}.jpg.jpg", "with another ending"),
        ("images/{}.tif", "images/{}.jpg", "with another ending"),
        ("images/{}.heic", "images/{}.jpg", "with another ending"),  # converted
        ("images/{}.jpg", "images/{}", "with another ending"),
        ("Images/{}.jpg", "images/{}.jpg", "with other capital letters"),
        ("\ufeffimages/{}.jpg", "images/{}.jpg", "without blanks or quotes around its name"),
        ("'images/{}.jpg'", "images/{}.jpg", "without blanks or quotes around its name"),
        ('"images/{}.jpg"', "images/{}.jpg", "without blanks or quotes around its name"),
        ("images/Kater%20{}.jpg", "images/Kater {}.jpg", "without %-signs"),
        (normalize("NFC", "bilder/käfer {}.jpg"), normalize("NFD", "bilder/käfer {}.jpg"), "Unicode"),
        (normalize("NFD", "bilder/käfer {}.jpg"), normalize("NFC", "bilder/käfer {}.jpg"), "Unicode"),
        ("images/ｉｍｇ{}.jpg", "images/img{}.jpg", "Unicode"),  # full-width letters
        ("/content/drive/MyDrive/data/images/{}.jpg", "images/{}.jpg", "in another folder"),  # posix_absolute_elsewhere
        ("C:\\Users\\me\\data\\images\\{}.jpg", "images/{}.jpg", "in another folder"),
        ("C:/Users/me/{}.jpg", "images/{}.jpg", "in another folder"),
        ("\\\\server\\share\\images\\{}.jpg", "images/{}.jpg", "in another folder"),
        ("file:///home/me/images/{}.jpg", "images/{}.jpg", "in another folder"),
        ("https://example.org/data/{}.jpg?size=1", "images/{}.jpg", "in another folder"),
        ("gs://bucket/a%20b/{}.jpg", "photos/a b/{}.jpg", "in another folder"),
        ("~/data/{}.jpg", "images/{}.jpg", "in another folder"),
        ("data/images/{}.jpg", "images/{}.jpg", "in another folder"),
        ("img/{}.jpg", "images/{}.jpg", "in another folder"),
    ],
)
def test_one_difference_that_explains_all_is_used_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str, there: str, says: str
) -> None:
    place(tmp_path, *(there.format(name) for name in NUMBERED))
    write_list(tmp_path, *(listed.format(name) for name in NUMBERED))
    assert read_names(tmp_path) == {there.format(name): number % 2 for number, name in enumerate(NUMBERED)}
    line = capsys.readouterr().err
    assert line.startswith("warning: 4 of 4 images do not exist, the first: ")
    assert "train.csv:2); there is " in line
    assert f"{there.format('img_00')}, " in line
    assert says in line
    assert line.endswith("; all 4 are taken so\n")
    assert read_names(tmp_path, KEEP) == read_names(tmp_path), "check sees what training sees"


@pytest.mark.parametrize(
    "text", ["./images/{}.jpg", "images//{}.jpg", "images/{}.jpg/", "images\\{}.jpg", "x/../images/{}.jpg"]
)
def test_other_ways_to_write_the_same_path_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    place(tmp_path, *(f"images/{name}.jpg" for name in NUMBERED))
    write_list(tmp_path, *(text.format(name) for name in NUMBERED))
    assert len(read_names(tmp_path)) == 4
    assert capsys.readouterr().err == ""


def test_mixed_endings_and_folders_beside_others_that_are_in_place(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg", "images/b.JPG", "images/c.png", "images/d.jpeg")
    write_list(tmp_path, *(f"images/{name}.jpg" for name in "abcd"))
    assert list(read_names(tmp_path)) == ["images/a.jpg", "images/b.JPG", "images/c.png", "images/d.jpeg"]
    write_list(tmp_path, "images/a.jpg", "images/b.JPG", "c.png", "d.jpeg")
    assert list(read_names(tmp_path)) == ["images/a.jpg", "images/b.JPG", "images/c.png", "images/d.jpeg"]


def test_images_in_class_folders_are_found_by_their_names(tmp_path: Path) -> None:
    place(tmp_path, "photos/cat/a.jpg", "photos/dog/b.jpg")
    write_list(tmp_path, "a.jpg", "b.jpg")
    assert read_names(tmp_path) == {"photos/cat/a.jpg": 0, "photos/dog/b.jpg": 1}


@pytest.mark.parametrize(
    ("there", "listed", "message"),
    [
        (["images/00001.jpg"], ["1.jpg"], "there is images/00001.jpg, whose number a spreadsheet"),
        (["images/00001.jpg"], ["images/1"], "there is images/00001.jpg, whose number"),
        (["images/1.jpg"], ["1.0"], r"there is images/1\.jpg, whose number a spreadsheet may have changed"),
        ([], ["1.jpg"], r"csv:2\); there is no image in "),
        (["1/IMG_1.JPG", "2/IMG_1.JPG"], ["img_1"], r"there are 1/IMG_1\.JPG and 2/IMG_1\.JPG, which differ"),
        (
            ["a.jpg"],
            ["a.JPG", "b.JPG"],
            r"1 of them is there with other capital letters, such as a\.jpg, but not b\.JPG",
        ),
        (["1/a.jpg", "2/a.jpg"], ["a.jpg"], "there are 1/a.jpg and 2/a.jpg, in another folder"),
        (["a.png", "a.webp"], ["a.jpg"], r"there are a\.png and a\.webp, with another ending"),
        (["a.jpg"], ["a.jpg", "a.png"], r"'a\.png' would be a\.jpg, which is listed, too"),
        (["a.jpg"], ["a.png", "a.webp"], r"'a\.png' and 'a\.webp' would both be a\.jpg"),
        (["a.jxl"], ["a.jpg"], r"there is a\.jxl, with another ending, of a type that is not read"),
        (
            ["a.jpg"],
            ["../a.jpg"],
            r"csv:2: the path '\.\./a\.jpg' leaves the data set's folder .*; there is a\.jpg, in an",
        ),
        (
            ["a.jpg", "b.jpg"],
            ["a.jpg", "/x/b.jpg"],
            r"csv:3: the path '/x/b\.jpg' leaves .*; there is b\.jpg, in another",
        ),
        (
            ["b.jpg"],
            ["https://x.org/a.jpg", "b.jpg"],
            r"first: https://x\.org/a\.jpg .*; images on the web are not fetched",
        ),
        (["b.jpg"], ["a.jpg", "b.jpg"], r"1 of 2 images do not exist, the first: .*/a\.jpg \(.*train\.csv:2\)$"),
    ],
)
def test_what_is_not_certain_stops_and_names_what_is_there(
    tmp_path: Path, there: list[str], listed: list[str], message: str
) -> None:
    place(tmp_path, *there)
    write_list(tmp_path, *listed)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path)


@pytest.mark.parametrize(
    ("listed", "there", "says"),
    [
        ("Foto_{}", "Bilder/Foto_{}.jpg", "in another folder, with another ending"),
        ("Foto_{}", "images/Foto_{}.jpg", "with another ending"),  # a folder that csv looks into
        ("Foto_{}", "train/Foto_{}.png", "with another ending"),
        ("FOTO_{}.JPG", "Bilder/Foto_{}.jpg", "in another folder, with other capital letters"),
        ("images/FOTO_{}", "images/Foto_{}.jpg", "with other capital letters, with another ending"),
        ("FOTO_{}", "Bilder/Foto_{}.jpg", "in another folder, with other capital letters, with another ending"),
        ("'images/Foto_{}'", "images/Foto_{}.jpg", "without blanks or quotes around its name, with another ending"),
        ("C:\\Fotos\\Foto_{}", "Bilder/Foto_{}.jpg", "in another folder, with another ending"),
        ("/mnt/x/Bilder/Foto_{}.png", "Bilder/Foto_{}.jpg", "in another folder, with another ending"),
        ("a/Foto%20{}", "b/Foto {}.jpg", "in another folder, without %-signs, with another ending"),
        (
            normalize("NFC", "Käfer_{}"),
            normalize("NFD", "Bilder/Käfer_{}.jpg"),
            "in another folder, with another ending",
        ),
    ],
)
def test_several_differences_that_explain_all_together_are_used_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str, there: str, says: str
) -> None:
    place(tmp_path, *(there.format(name) for name in "abc"), "other/Foto_d.jpg")
    write_list(tmp_path, *(listed.format(name) for name in "abc"))
    assert read_names(tmp_path) == {there.format(name): number % 2 for number, name in enumerate("abc")}
    line = capsys.readouterr().err
    assert line.startswith("warning: 3 of 3 images do not exist, the first: ")
    assert line.endswith(f"there is {there.format('a')}, {says}; all 3 are taken so\n")


def test_each_line_may_differ_in_some_of_the_ways(tmp_path: Path) -> None:
    """48 lines differ in the folder alone, the others in their capital letters, too."""
    place(tmp_path, *(f"Bilder/Foto_{number}.jpg" for number in range(60)))
    lines = [f"Foto_{number}.jpg" if number % 5 else f"FOTO_{number}.JPG" for number in range(60)]
    write_list(tmp_path, *lines)
    assert read_names(tmp_path) == {f"Bilder/Foto_{number}.jpg": number % 2 for number in range(60)}


def test_the_fewest_differences_are_used(tmp_path: Path) -> None:
    place(tmp_path, "x/a.jpg", "x/A.jpg", "x/b.jpg")
    write_list(tmp_path, "a", "b")
    assert read_names(tmp_path) == {"x/a.jpg": 0, "x/b.jpg": 1}
    place(tmp_path, "1/a/c.jpg", "2/b/c.jpg")
    write_list(tmp_path, "a/c", "b/c")
    assert read_names(tmp_path) == {"1/a/c.jpg": 0, "2/b/c.jpg": 1}, "folders tell images of one name apart"


@pytest.mark.parametrize(
    ("there", "listed", "message"),
    [
        (["x/a.jpg", "y/a.png"], ["a"], r"there are x/a\.jpg and y/a\.png, which differ in more than one way"),
        (["x/a.jpg", "x/a.png"], ["a"], r"there are x/a\.jpg and x/a\.png, which differ in more than one way"),
        (
            ["x/a.jpg"],
            ["a", "A"],
            r"2 of 2 images do not exist, .*; 'A' and 'a' would both be x/a\.jpg",
        ),
        (
            ["x/a.jpg"],
            ["a", "b"],
            r"2 of 2 images do not exist; 1 of them is there in another folder, with another ending, .* but not b",
        ),
        (
            ["x/a.jpg", "x/b.jpg", "y/b.jpg"],
            ["a", "b"],
            r"such as x/a\.jpg, but not b \(.*; there are x/b\.jpg and y/b\.jpg, which differ",
        ),
        (["val/a.jpg"], ["a"], r"there is val/a\.jpg, which differs in more than one way"),
        (["test/a.jpg"], ["train/A.jpg"], r"there is test/a\.jpg, which differs in more than one way"),
        (["x/a.jpg"], ["../a"], r"the path '\.\./a' leaves the data set's folder"),
        (["x/a.jpg", "x/b.jpg"], ["x/a.jpg", "/mnt/x/b"], r"csv:3: the path '/mnt/x/b' leaves the data set's folder"),
        (
            ["x/a.jpg", "y/b.jpg"],
            ["x/a.jpg", "x/b"],
            r"1 of 2 images do not exist, .*; there is y/b\.jpg, which differs",
        ),
    ],
)
def test_several_differences_that_leave_a_doubt_stop(
    tmp_path: Path, there: list[str], listed: list[str], message: str
) -> None:
    place(tmp_path, *there)
    write_list(tmp_path, *listed)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path)


def test_what_is_missing_is_said_once(tmp_path: Path) -> None:
    place(tmp_path, "Bilder/b.jpg", "Bilder/c.jpg")
    write_list(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError) as error:
        read_names(tmp_path)
    assert str(error.value) == (
        "3 of 3 images do not exist; 2 of them are there in another folder, such as Bilder/b.jpg, but not a.jpg "
        f"({tmp_path}/train.csv:2)"
    )


def test_images_in_sub_folders_of_coco_are_found_where_one_is_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*names: str) -> None:
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        labels = [{"id": number, "image_id": number, "category_id": 1} for number in range(0, len(names), 2)]
        coco = {"images": images, "annotations": labels, "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / "train.json").write_text(json.dumps(coco))

    place(tmp_path, "images/a.jpg", "images/cat/b.jpg", "images/dog/c.jpg")
    write("a.jpg", "b.jpg", "c.jpg")
    assert read_names(tmp_path) == {"images/a.jpg": 1, "images/cat/b.jpg": 0, "images/dog/c.jpg": 1}
    assert "2 of 3 images do not exist" in capsys.readouterr().err
    write("a.jpg", "B", "C")
    assert list(read_names(tmp_path)) == ["images/a.jpg", "images/cat/b.jpg", "images/dog/c.jpg"]
    place(tmp_path, "images/d.jpg", "images/e.jpg")
    write("a.jpg", "b.jpg", "d.jpg", "e.jpg")
    with pytest.raises(InputError, match="1 of 4 images do not exist"):
        read_names(tmp_path)  # it may have been sorted out
    place(tmp_path, "images/cat/a.jpg")
    write("a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError, match="2 of 3 images do not exist"):
        read_names(tmp_path)  # sub-folders hold something else, of the same names


def test_an_image_of_another_split_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    """Numbered names are the same in every split; the training images were not unpacked."""
    place(tmp_path, "val/1.jpg", "val/2.jpg")
    for listed in (["train/1.jpg", "train/2.jpg"], ["1.jpg", "2.jpg"]):
        write_list(tmp_path, *listed)
        with pytest.raises(InputError, match=r"2 of 2 images do not exist.*; there is val/1\.jpg, in another folder"):
            read_names(tmp_path)
    place(tmp_path, "a/1.jpg", "b/2.jpg", "b/1.jpg")
    write_list(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    with pytest.raises(InputError, match=r"1 of 3 images do not exist, .*; there (is|are) .*2\.jpg"):
        read_names(tmp_path)


def test_nothing_outside_the_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "outside/secret.jpg", "set/a.jpg")
    write_list(tmp_path / "set", f"{tmp_path}/outside/secret.jpg", "a.jpg")
    with pytest.raises(InputError, match=r"secret\.jpg' leaves the data set's folder .*/set$"):
        read_names(tmp_path / "set")
    kept = read_names(tmp_path / "set", KEEP)
    assert set(kept) == {"a.jpg", f"(outside){tmp_path}/outside/secret.jpg"}, "a path that no file has"


def test_rows_of_missing_images_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, "images/a.jpg", "images/B.jpg")
    write_list(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    with pytest.raises(InputError, match="2 of 3 images do not exist"):
        read_names(tmp_path)
    assert read_names(tmp_path, KEEP) == {"images/B.jpg": 1, "images/a.jpg": 0, "images/c.jpg": 0}
    assert "2 of 3 images do not exist" in capsys.readouterr().err


def test_rows_of_missing_images_of_any_format_can_be_kept(tmp_path: Path) -> None:
    place(tmp_path, "coco/train/a.jpg", "studio/a.jpg", "cls/images/train-resized/a.jpg")
    categories = [{"id": 1, "name": "cat"}]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    (tmp_path / "coco" / "train.json").write_text(
        json.dumps(
            {"images": images, "annotations": [{"id": 1, "image_id": 2, "category_id": 1}], "categories": categories}
        )
    )
    result = {"from_name": "choice", "type": "choices", "value": {"choices": ["cat"]}}
    tasks = [
        {"id": number, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"result": [result] * number}]}
        for number, name in enumerate(("a.jpg", "gone.jpg"))
    ]
    (tmp_path / "studio" / "project.json").write_text(json.dumps(tasks))
    (tmp_path / "cls" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "cls" / "classes.txt").write_text("cat\n")
    (tmp_path / "cls" / "labels" / "train" / "a.cls").write_text("")
    (tmp_path / "cls" / "labels" / "train" / "gone.cls").write_text("0\n")
    for name in ("coco", "studio", "cls"):
        with pytest.raises(InputError, match=r"gone(\.jpg)?"):
            read_names(tmp_path / name)
        kept = read_names(tmp_path / name, KEEP)
        assert {path.rpartition("/")[2]: label for path, label in kept.items()} == {"a.jpg": 0, "gone.jpg": 1}, name


def test_a_label_file_names_the_image_of_another_type(tmp_path: Path) -> None:
    place(tmp_path, "images/train-resized/a.jpg", "images/train-resized/03.jxl")
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("cat\n")
    for name in ("a", "03"):
        (labels / f"{name}.cls").write_text("0\n")
    with pytest.raises(
        InputError, match=r"1 label file\(s\) without an image, .*03\.jpg does not exist; there is 03\.jxl, "
    ):
        read_names(tmp_path)
    (tmp_path / "images" / "train-resized" / "03.jxl").rename(tmp_path / "images" / "train-resized" / "03.jfif")
    assert [path.rpartition("/")[2] for path in read_names(tmp_path)] == ["03.jfif", "a.jpg"]


def test_files_of_systems_and_links_do_not_confuse(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg", "__MACOSX/images/a.jpg", "images/._a.jpg", "@eaDir/a.jpg")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "again").symlink_to("images")
    write_list(tmp_path, "a.jpg")
    assert list(read_names(tmp_path)) == ["images/a.jpg"]


def test_two_images_of_one_name_are_not_mapped(tmp_path: Path) -> None:
    place(tmp_path, "x/1/a.jpg", "x/b.png", "y/c.jpg")
    assert ImageFinder(tmp_path).map_names() == {"a.jpg": "x/1/a.jpg", "b.png": "x/b.png", "c.jpg": "y/c.jpg"}
    assert ImageFinder(tmp_path, [tmp_path / "x" / "1", tmp_path / "y"]).map_names() == {
        "a.jpg": "x/1/a.jpg",
        "c.jpg": "y/c.jpg",
    }
    place(tmp_path, "y/a.jpg")
    with pytest.raises(InputError, match=r"x/1/a\.jpg and .*y/a\.jpg have the same name"):
        ImageFinder(tmp_path).map_names()
