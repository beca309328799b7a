"""Data folders of unknown origin: each is read, or is one line that names the file; nothing stalls, runs or escapes."""

from __future__ import annotations

import ast
import io
import os
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
import dataset_tools
from dataset import table as tables
from dataset.array_files import read_array, read_arrays
from dataset.bad_images import find_bad_images
from dataset.class_names import ClassIndex, split_names
from dataset.decoding import decode_image
from dataset.files import IMAGE_EXTENSIONS, list_files
from dataset.formats.base import ReadOptions
from dataset.json_files import parse_json
from dataset.rows import Rows
from dataset.text_files import read_text
from dataset.yaml_files import read_yaml
from dataset_readers import read_dataset
from heads import read_embeddings
from tools import split
from tools.check import check_dataset
from tools.convert import convert_dataset
from trainer import from_config
from utils import InputError

ROOT = Path(__file__).resolve().parents[2]


def make_jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def require_line(error: pytest.ExceptionInfo[InputError]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500


# ---- links ----


def test_links_do_not_go_round_and_each_file_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "set" / "images"
    write(elsewhere, {"deep/far.jpg": b"", "near.jpg": b""})
    write(root, {"a/1.jpg": b"", "b/2.jpg": b"", "b/c/3.jpg": b""})
    write(tmp_path / "set", {"secret.jpg": b""})
    links = {
        "parent": "..", "self": ".", "a/root": "../..", "b/c/up": "../..", "a/b": "../b", "b/a": "../a",
        "out": elsewhere, "out2": elsewhere, "none": "nowhere", "own": "own", "own.jpg": "own.jpg",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    names, folders = list_files(root, IMAGE_EXTENSIONS)
    assert names == ["a/1.jpg", "b/2.jpg", "b/c/3.jpg", "out/deep/far.jpg", "out/near.jpg", "own.jpg"]
    assert folders == ["", "a/", "b/", "b/c/", "out/", "out/deep/"]
    assert "7 link(s) to folders that are read anyway, or that hold this one, are not followed" in (
        capsys.readouterr().err
    )


def test_many_links_to_each_other_take_no_time(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, {f"c{number}/{number}.jpg": b""})
        for other in range(12):
            (tmp_path / f"c{number}" / f"l{other}").symlink_to(f"../c{other}")
    assert len(list_files(tmp_path, IMAGE_EXTENSIONS)[0]) == 12


# ---- what is no ordinary file ----


def place_odd(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        place = socket.socket(socket.AF_UNIX)
        folder = Path.cwd()
        os.chdir(path.parent)  # the address of a socket has at most 108 bytes
        place.bind(path.name)
        os.chdir(folder)
        place.close()


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_an_image_that_is_no_ordinary_file_is_counted(tmp_path: Path, kind: str) -> None:
    write(tmp_path, {"train/x/a.jpg": make_jpeg(), "train/x/b.jpg": b""})
    odd = tmp_path / "train" / "x" / "b.jpg"
    odd.unlink()
    place_odd(odd, kind)
    paths = read_dataset(tmp_path, split="train").paths
    reason = "No such device or address" if kind == "socket" else "it is a pipe, a socket or a device, not an ordinary"
    with pytest.raises(InputError, match=f"cannot read image {odd}: {reason}"):
        decode_image(odd)
    assert list(find_bad_images(paths)) == [str(odd)]
    assert not check_dataset(tmp_path, output=tmp_path / "out")
    with pytest.raises(InputError, match=r"is no ordinary file, or does not exist"):
        convert_dataset(tmp_path, "auto", "csv", tmp_path / "csv", link_or_copy="copy")
    with pytest.raises(InputError, match=rf"{odd} is no ordinary file"):
        split.link(str(odd), tmp_path / "new" / "b.jpg")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["labels/train/a.cls", "classes.txt"])
def test_a_label_file_that_is_no_ordinary_file(tmp_path: Path, kind: str, name: str) -> None:
    write(tmp_path, {"images/train-resized/a.jpg": b"", "labels/train/a.cls": "0", "classes.txt": "x"})
    (tmp_path / name).unlink()
    place_odd(tmp_path / name, kind)
    with pytest.raises(InputError, match=rf"{name}:? (it is a pipe|is missing)|cannot read .*{name}: it is a pipe"):
        read_dataset(tmp_path, split="train")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_lists_that_are_no_ordinary_files_are_no_lists(tmp_path: Path, kind: str) -> None:
    names = ("train.json", "train.csv", "a.csv", "train_list.txt", "annotations/instances_train9.json", "train.txt")
    names += ("list_attr_celeba.txt", "list_attr_celeba.csv", "Data_Entry_2017.csv", "train_v2.csv", "labels.csv")
    names += ("train-annotations-human-imagelabels.csv", "ImageSets/Main/train.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if kind == "folder" else place_odd(tmp_path / name, kind)
    (tmp_path / "train-jpg").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(InputError, match="is in no known format"):
        read_dataset(tmp_path)
    write(tmp_path, {"all.csv": "image_path,labels,split\na.jpg,x,train\n", "a.jpg": b""})
    assert read_dataset(tmp_path, split="train").classes == ("x",)


def test_files_without_end_take_no_memory(tmp_path: Path) -> None:
    image, lists = tmp_path / "a.jpg", tmp_path / "set"
    image.touch()
    write(lists, {"a.jpg": b"", "other.csv": "", "all.csv": "image_path,labels,split\na.jpg,x,train\n"})
    for path in (image, lists / "other.csv"):
        os.truncate(path, 10**12)  # takes no room: nothing was written
    with pytest.raises(InputError, match=r"a\.jpg: it has 1,000,000,000,000 bytes, and an image 1,500,000,000"):
        decode_image(image)
    assert read_dataset(lists, split="train").classes == ("x",), "only the beginning of other.csv is looked at"


# ---- shards ----


def change_header(folder: Path, kind: bytes, size: bytes) -> None:
    """A shard whose first header says that it is of another `kind` (a letter; b"": as it is) and `size`."""
    header = tarfile.TarInfo("1.jpg")
    data = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    data[156:157] = kind or data[156:157]
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    (folder / "train-0.tar").write_bytes(bytes(data) + bytes(2048))


NEGATIVE = struct.pack(">I", 0xFFFFFFFF) + (-1024).to_bytes(8, "big", signed=True)


@pytest.mark.parametrize("kind", [b"", b"x", b"L", b"K"])
@pytest.mark.parametrize("size", [2**33, 2**40, 2**62, 2**70, 2**80, None])
def test_headers_of_a_shard_that_lie(tmp_path: Path, kind: bytes, size: int | None) -> None:
    change_header(tmp_path, kind, NEGATIVE if size is None else b"\x80" + size.to_bytes(11, "big"))
    with pytest.raises(
        InputError, match=r"train-0\.tar( is no whole tar| is cut short| holds no images|: .*Invalid argument)"
    ) as error:
        read_dataset(tmp_path, split="train", classes=("x",))
    require_line(error)


def test_headers_of_a_shard_without_end(tmp_path: Path) -> None:
    name = tarfile.TarInfo("a")
    name.type = tarfile.GNUTYPE_LONGNAME
    sparse = tarfile.TarInfo("a.jpg")
    sparse.size = 512
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}
    for data in (
        name.tobuf(tarfile.GNU_FORMAT) * 5000,  # each says that the name is in the next one
        sparse.tobuf(tarfile.PAX_FORMAT) + b"9" * 512,
    ):
        (tmp_path / "train-0.tar").write_bytes(data + bytes(1024))
        with pytest.raises(InputError, match=r"train-0\.tar is no whole tar file") as error:
            read_dataset(tmp_path, split="train", classes=("x",))
        require_line(error)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.json", b"[" * 100_000, "nested too deeply"),
        ("1.json", b'{"labels": [' + b"1" * 5000 + b"]}", "an integer in it has thousands of digits"),
        ("1.json", b'{"labels": [], "labels": [0]}', "the key 'labels' stands twice"),
        ("1.json", b'{"labels": [NaN]}', "NaN stands in it"),
        ("1.json", b'{"labels": ["\\ud800"]}', "is neither a class name nor"),
        ("1.json", b'{"labels": [' + b"[" * 900 + b"]" * 900 + b"]}", "is neither a class name nor"),
        ("1.json", b" " * (1 << 20) + b"{}", "labels, of 1,048,578 bytes"),
        ("1.cls", b"1" * 5000, "Exceeds the limit"),
    ],
    ids=["deep", "digits", "twice", "NaN", "half a surrogate", "deep label", "large", "cls digits"],
)
def test_labels_of_a_shard(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for member, data in (("1.jpg", b""), (name, content)):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(InputError, match=reason) as error:
        read_dataset(tmp_path, split="train", classes=("x",))
    require_line(error)
    assert not (tmp_path / "train.index.csv").exists()


def test_check_runs_no_command_and_others_do_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, mark = tmp_path / "set", tmp_path / "mark"
    with tarfile.open(tmp_path / "train-1.tar", "w") as tar:
        for name, data in (("1.jpg", make_jpeg()), ("1.cls", b"0")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    write(root, {"shards.txt": f"\npipe:touch {mark}; cat {tmp_path}/train-1.tar\n", "classes.txt": "x\n"})
    monkeypatch.setattr(config, "DATASET_FOLDER", root)
    monkeypatch.setattr(config, "CACHE_FOLDER", tmp_path / "cache")
    for allowed, run in ((False, True), (False, False), (True, False)):
        monkeypatch.setattr(config, "SHARD_COMMANDS", allowed)
        with pytest.raises(InputError, match=r"shards\.txt:2: 'pipe:touch .*check runs none all the same"):
            from_config.read_split("train", from_config.make_options(run_commands=run))
    monkeypatch.setattr(dataset_tools, "CHECK_FOLDER", tmp_path / "check")
    with pytest.raises(InputError, match=r"no images to check; train: .*shards\.txt:2: 'pipe:touch "):
        dataset_tools.run_check()
    assert not mark.exists()
    assert len(from_config.read_split("train")) == 1
    assert mark.exists()


def test_no_reader_can_run_what_it_reads() -> None:
    """The words by which Python runs, imports or unpickles something stand in none of the files that read data."""
    banned = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "Popen", "subprocess"}
    banned |= {"pickle", "marshal", "shelve", "yaml", "ctypes", "runpy", "spawn", "gopen"}
    found = set()
    files = [*(ROOT / "dataset").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    for file in [*files, ROOT / "dataset_readers.py", ROOT / "dataset_tools.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.id] if isinstance(node, ast.Name) else []
            names += [node.attr] if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "re" else []
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", file.name
            found |= {(file.name, name) for name in names if name in banned}
            assert not isinstance(node, ast.Attribute) or ast.unparse(node) != "np.load", (
                f"{file.name}: read_array looks before it takes memory"
            )
    allowed = {("addresses.py", "gopen"), ("decoding.py", "ctypes"), ("yaml_files.py", "yaml")}
    assert found == allowed, (
        "SHARD_COMMANDS guards the first; the second hands libtiff a function that hears its errors; the third makes "
        "nothing but text"
    )


def test_yaml_makes_nothing_but_text(tmp_path: Path) -> None:
    text = "names: !!python/object/apply:os.mkdir ['made']\nmore: [no, 1e3, null, !!int '7', 2020-01-01]\n"
    (tmp_path / "data.yaml").write_text(text)
    before = set(Path().iterdir())
    assert read_yaml(tmp_path / "data.yaml") == {"names": ["made"], "more": ["no", "1e3", "null", "7", "2020-01-01"]}
    assert set(Path().iterdir()) == before
    for text, message in (("a: [1", r"data\.yaml:1: this is not YAML"), ("[" * 5000, "nested too deeply|not YAML")):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / "data.yaml")


# ---- NumPy's files ----


def write_npy(path: Path, shape: tuple[int, ...], data: bytes = b"", descr: str = "<f4") -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(data)


NPY = {
    "10^12 numbers": lambda path: write_npy(path, (10**6, 10**6)),
    "10^30 numbers": lambda path: write_npy(path, (10**15, 10**15)),
    "fewer than none": lambda path: write_npy(path, (-1, 5), bytes(100)),
    "cut short": lambda path: write_npy(path, (2, 2), bytes(15)),
    "of objects": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
    "deep header": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
    "no header": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00abcd"),
    "of the future": lambda path: path.write_bytes(b"\x93NUMPY\x09\x00\x04\x00abcd"),
    "empty": lambda path: path.write_bytes(b""),
    "no .npy": lambda path: path.write_bytes(b"text" * 50),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", NPY)
def test_arrays_that_are_not_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npy"
    NPY[kind](path)
    with pytest.raises((ValueError, OSError)) as error:
        read_array(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"cannot use embeddings {path}"):
        read_embeddings(path, ["x"])
    if kind != "a pipe":
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.write(path, "a.npy")
        with pytest.raises(ValueError, match=r"."):
            read_arrays(tmp_path / "a.npz")


def test_arrays_come_as_they_are(tmp_path: Path) -> None:
    arrays = {
        "floats": np.random.default_rng(0).random((3, 4)),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "names": np.array(["é", "abc"]),
        "none": np.zeros((0, 5), np.int8),
        "one": np.array(7),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.save(tmp_path / "a.npy", array)
        for again in (read_array(tmp_path / "a.npy"), found[name]):
            assert again.dtype == array.dtype
            assert again.shape == array.shape
            assert again.tolist() == array.tolist()


def test_an_archive_that_unfolds_to_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1_000_000, np.int8))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    monkeypatch.setattr("dataset.array_files.measure_memory", lambda: 8_000_000)
    with pytest.raises(ValueError, match="it unfolds to more than fits into memory"):
        read_arrays(tmp_path / "a.npz")


# ---- names, paths, sizes ----


@pytest.mark.parametrize("text", ["a\0b/c.jpg", "\0.jpg", "\ud800/a.jpg", "a\udfff.jpg\ud800"])
def test_a_path_that_no_file_can_have(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"list:3: .* cannot be the path of a file"):
        Rows(tmp_path, tmp_path, ("x",)).add(text, b"\1", "list:3")


OUTSIDE = ["../a.jpg", "/etc/passwd", "a/../../set2/a.jpg", "..", "./../a.jpg", "..\\a.jpg", "\\etc\\passwd/../../../a"]
LISTS: dict[str, Callable[[str], dict[str, str]]] = {
    "csv": lambda path: {"train.csv": f'image_path,labels\n"{path}",x\n'},
    "train_list": lambda path: {"train_list.txt": f"{path}\t1\n", "classes.txt": "x\n"},
    "mlcls": lambda path: {"train.txt": f"{path}\t1\n", "label.txt": "0 x\n"},
    "classes_json": lambda path: {"train.json": f'{{"classes": ["x"], "images": [["{esc(path)}", ["x"]]]}}'},
    "coco_json": lambda path: {
        "annotations/instances_train.json": f'{{"images": [{{"id": 1, "file_name": "../{esc(path)}"}}], '
        '"annotations": [], "categories": [{"id": 1, "name": "x"}]}',
        "train/a.jpg": "",
    },
    "huggingface": lambda path: {"train/metadata.csv": f'file_name,label\n"../{path}",x\n'},
    "roboflow": lambda path: {"train/_classes.csv": f'filename,x\n"../{path}",1\n'},
    "createml": lambda path: {"x.json": f'[{{"image": "{esc(path)}", "annotations": ["x"]}}]'},
    "fiftyone": lambda path: {
        "labels.json": f'{{"classes": ["x"], "labels": {{"../{esc(path)}": 0}}}}',
        "data/a.jpg": "",
    },
    "via": lambda path: {
        "x.json": f'{{"1": {{"filename": "{esc(path)}", "regions": [], "file_attributes": {{"kind": "x"}}}}}}'
    },
    "datumaro": lambda path: {
        "annotations/x.json": '{"categories": {"label": {"labels": [{"name": "x"}]}}, "items": [{"id": "1", '
        f'"annotations": [], "image": {{"path": "../../{esc(path)}"}}}}]}}',
        "images/x/a.jpg": "",
    },
    "yolo": lambda path: {"data.yaml": "train: train.txt\nnames: [x]", "train.txt": f"{path}\n"},
}


def esc(path: str) -> str:
    return path.replace("\\", "\\\\")


@pytest.mark.parametrize("format", LISTS)
@pytest.mark.parametrize("path", OUTSIDE)
def test_no_list_names_a_file_outside_its_folder(tmp_path: Path, format: str, path: str) -> None:
    if format in ("coco_json", "huggingface", "roboflow", "fiftyone", "datumaro") and path.startswith("/"):
        path = f"../..{path}"
    write(tmp_path, {"a.jpg": b"", "set2/a.jpg": b""})
    write(tmp_path / "set", LISTS[format](path))
    with pytest.raises(InputError, match=r"leaves the data set's folder|its images are not there"):
        read_dataset(tmp_path / "set", format, "train")


def test_a_name_without_end_is_looked_for_in_no_time() -> None:
    index = ClassIndex(["x" * 3_000_000, "cat"])
    with pytest.raises(InputError, match=r"'(xy){50}' is no class; the nearest: x{100}, cat") as error:
        index.find("xy" * 1_500_000, "f:1")
    require_line(error)


def test_a_cell_that_is_no_csv() -> None:
    assert split_names('"a;b";c', ";") == ["a;b", "c"]
    with pytest.raises(InputError, match="cannot be told apart"):
        split_names('a"' + "b" * 200_000, ";")


def test_a_class_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "train" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    with pytest.raises(InputError, match=r"class 1: a class name is no valid Unicode: 'caf\\udce9'"):
        read_dataset(tmp_path)


def test_a_text_takes_no_more_memory_than_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.text_files.measure_memory", lambda: 1 << 60)  # not even an address for so much
    (tmp_path / "a.txt").write_text("a\n")
    assert read_text(tmp_path / "a.txt") == "a\n"


@pytest.mark.parametrize("name", ["half \ud800", "\udfff\ud800"])
def test_a_class_name_that_is_no_text(tmp_path: Path, name: str) -> None:
    text = name.encode("unicode_escape").decode()
    write(tmp_path, {"train.json": f'{{"classes": ["{text}"], "images": [["a.jpg", []]]}}', "a.jpg": b""})
    with pytest.raises(InputError, match=r"train\.json:1: a class name is no valid Unicode"):
        read_dataset(tmp_path, split="train")


def test_more_labels_than_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    images = ", ".join(f'["{name}", ["x"]]' for name in names)
    write(tmp_path / "json", {"train.json": f'{{"classes": ["x", "y"], "images": [{images}]}}'})
    write(tmp_path / "csv", {"train.csv": "image_path,labels\n" + "".join(f"{name},x\n" for name in names)})
    write(tmp_path / "csv", {"classes.txt": "x\ny\n"})
    write(tmp_path / "cls", {"classes.txt": "x\ny\n"})
    for name in names:
        write(tmp_path / "json", {name: b""})
        write(tmp_path / "csv", {name: b""})
        write(tmp_path / "cls", {f"images/train-resized/{name}": b"", f"labels/train/{name[:-4]}.cls": b"0"})
    monkeypatch.setattr(tables, "measure_memory", lambda: 2 * 20 * 2)
    for folder in ("json", "csv", "cls"):
        assert read_dataset(tmp_path / folder, split="train").targets.shape == (20, 2)
    monkeypatch.setattr(tables, "measure_memory", lambda: 2 * 18 * 2)
    for folder in ("json", "csv", "cls"):
        with pytest.raises(InputError, match=r"(19|20) images of 2 classes: their labels do not fit into the memory"):
            read_dataset(tmp_path / folder, split="train")


def test_brackets_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.json_files.SMALL_BYTES", 100)
    monkeypatch.setattr("dataset.json_files.measure_memory", lambda: 2 * 64 * 51)
    assert len(parse_json("[" + "[]," * 49 + "{}]", "f")) == 50
    for text in ("[" + "[]," * 50 + "{}]", b"[" + b"{}," * 50 + b"[]]"):
        with pytest.raises(InputError, match="f: what it holds does not fit into memory"):
            parse_json(text, "f")


# ---- caches ----


def test_a_damaged_cache_is_made_anew_or_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"a.jpg": make_jpeg()})
    paths, cache = [str(tmp_path / "a.jpg")], tmp_path / "cache"
    assert find_bad_images(paths, cache) == {}
    (file,) = cache.glob("bad_images_*.json")
    for text in ("[" * 100_000, '["x"]', '{"a": 1}', '{"a": "b", "a": "c"}', ""):
        file.write_text(text)
        with pytest.raises(InputError, match=rf"{file}"):
            find_bad_images(paths, cache)


def test_a_label_index_that_announces_10_to_the_12(tmp_path: Path) -> None:
    write(tmp_path, {"images/train-resized/a.jpg": b"", "labels/train/a.cls": "0", "classes.txt": "x\n"})
    options = ReadOptions(cache_folder=tmp_path / "cache")
    from dataset import label_files

    names: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_files, "_read_index", lambda path, *_: names.append(path))
        read_dataset(tmp_path, split="train", options=options)
    names[0].parent.mkdir(exist_ok=True)
    write_npy(names[0], (10**12,), descr="|u1")
    assert read_dataset(tmp_path, split="train", options=options).targets.tolist() == [[1]]
