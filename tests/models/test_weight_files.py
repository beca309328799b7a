"""models/weight_files.py and pretrained.py: a network's tensors are found whatever stands around them, or one line says
why not.
"""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import models_factory
from models import checkpoints, weight_files
from utils import InputError

State = dict[str, Tensor]
NAME, COUNT = "test_resnet", 75  # a network of timm, and its tensors without the classifier's and BatchNorm's counters


def make_state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return timm.create_model(NAME).state_dict()


def load(path: Path) -> models_factory.MultiLabelModel:
    return models_factory.make_model(NAME, 5, weights=str(path), image_size=64)


def assert_filled(model: models_factory.MultiLabelModel, state: State) -> None:
    found = model.backbone.get_submodule("network").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    assert model.loaded is not None
    assert not model.loaded.missing


def prefix(text: str) -> Callable[[State], Any]:
    return lambda state: {text + key: value for key, value in state.items()}


def nest(state: State) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in state.items():
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def hold_itself(state: State) -> dict[str, Any]:
    content: dict[str, Any] = {"model": state}
    content["again"] = content
    return content


AROUND: dict[str, Callable[[State], Any]] = {
    "nothing": lambda state: state,
    **{
        f"in {key}": lambda state, key=key: {key: state, "epoch": 3}
        for key in ("model_ema", "params", "net", "weights")
    },
    **{
        f"after {text}": prefix(text)
        for text in ("net.", "_orig_mod.", "module._orig_mod.", "model.visual.", "a.b.c.d.")
    },
    "moco": lambda state: {"state_dict": prefix("module.encoder_q.")(state)},
    "ema of DataParallel": lambda state: {"model_ema": {"module": prefix("backbone.body.")(state)}},
    "three levels": lambda state: {"a": {"b": {"c": prefix("x.")(state)}}},
    "wrappers inside": lambda state: {
        key.replace(".0.", ".0._checkpoint_wrapped_module.module."): value for key, value in state.items()
    },
    "a tree": nest,
    "two that are equal": lambda state: {"model": state, "ema": {key: value.clone() for key, value in state.items()}},
    "another network beside": lambda state: {"model": state, "teacher": timm.create_model("test_vit").state_dict()},
    "an optimizer beside": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}},
    "what is no tensor beside": lambda state: state | {"epoch": 3, "names": ["a"]},
    "itself inside": hold_itself,
}


@pytest.mark.parametrize("case", AROUND)
def test_tensors_are_found_whatever_stands_around_them(case: str, tmp_path: Path) -> None:
    state = make_state()
    torch.save(AROUND[case](state), tmp_path / "weights.pth")
    assert_filled(load(tmp_path / "weights.pth"), state)


def test_names_that_timm_converts_are_found_after_a_prefix(tmp_path: Path) -> None:
    """timm's code gives the tensors of OpenAI's CLIP its own names."""
    network = timm.create_model("test_vit")
    converted = {key.replace("blocks.", "transformer.resblocks."): value for key, value in network.state_dict().items()}
    renames = {".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj."}
    renames |= {".attn.qkv.": ".attn.in_proj_", ".attn.proj.": ".attn.out_proj."}
    state = {}
    for key, value in converted.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        state[f"model.visual.{key}"] = value
    state["model.visual.class_embedding"] = state.pop("model.visual.cls_token")[0, 0]
    state["model.visual.positional_embedding"] = state.pop("model.visual.pos_embed")[0]
    state["model.visual.conv1.weight"] = state.pop("model.visual.patch_embed.proj.weight")
    torch.save({"state_dict": state}, tmp_path / "clip.pth")
    model = models_factory.make_model("test_vit", 5, weights=str(tmp_path / "clip.pth"), image_size=160)
    found = model.backbone.get_parameter("network.blocks.1.attn.qkv.weight")
    assert torch.equal(found, network.get_parameter("blocks.1.attn.qkv.weight"))


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, ("state_dict.", "state_dict_ema.")),
        (lambda a, b: {"teacher": prefix("backbone.")(a), "student": b}, ("teacher.backbone.", "student.")),
        (lambda a, b: prefix("encoder_q.")(a) | prefix("encoder_k.")(b), ("encoder_q.", "encoder_k.")),
    ],
)
def test_two_sets_that_differ_are_named(content: Any, places: tuple[str, str], tmp_path: Path) -> None:
    torch.save(content(make_state(0), make_state(1)), tmp_path / "two.pth")
    expected = rf"^\S+ holds two sets of tensors that fit and differ, `{places[0]}` and `{places[1]}`: write the one "
    with pytest.raises(InputError, match=expected):
        load(tmp_path / "two.pth")


def test_of_a_run_that_is_not_finished_the_models_weights_are_taken(tmp_path: Path) -> None:
    """last.pt also holds the averaged weights, which differ."""
    first = models_factory.make_model(NAME, 5, image_size=64)
    averaged = {f"module.{key}": value + 1 for key, value in first.state_dict().items()}
    values = {"model_name": NAME, "head": "linear_bn", "classes": list("abcde"), "image_size": 64}
    values |= {"resize_rule": "squash", "model_state": first.state_dict()}
    checkpoints.save(tmp_path / "last.pt", values | {"training_state": {"engine": {"average": averaged}}})
    assert_filled(load(tmp_path / "last.pt"), first.backbone.get_submodule("network").state_dict())


def test_another_projects_mean_is_not_the_pixels(tmp_path: Path) -> None:
    state = prefix("backbone.")(make_state())
    for mean, std in ((torch.rand(3), torch.rand(3)), (torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1))):
        torch.save(state | {"mean": mean, "std": std}, tmp_path / "other.pth")
        expected = models_factory.make_model(NAME, 5, image_size=64)
        assert torch.equal(load(tmp_path / "other.pth").mean, expected.mean)


def test_a_compiled_model_of_this_project_gives_its_pixels(tmp_path: Path) -> None:
    first = models_factory.make_model(NAME, 5, image_size=64)
    first.mean.fill_(99.0)
    torch.save(prefix("module._orig_mod.")(first.state_dict()), tmp_path / "compiled.pt")
    model = load(tmp_path / "compiled.pt")
    assert_filled(model, first.backbone.get_submodule("network").state_dict())
    assert (model.mean == 99).all()


# ---- what does not fit ----


def test_a_name_of_each_side_is_shown_where_nothing_fits(tmp_path: Path) -> None:
    state = make_state()
    first = next(iter(state))
    cases = {
        f"the file has `net.{first.upper()}`, the network `{first}`": {f"net.{first.upper()}": torch.zeros(1)},
        f"the file has `y.x{first}`, the network `{first}`": {"bias": torch.zeros(1), f"y.x{first}": torch.zeros(1)},
        rf"`{first}` is \(1,\) torch.float32 in the file, \(": dict.fromkeys(state, torch.zeros(1)),
        rf"`{first}` is \([0-9, ]+\) torch.int8 in the file, \(": {k: v.to(torch.int8) for k, v in state.items()},
    }
    for expected, content in cases.items():
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError, match=f"do not fit {NAME}: of its {COUNT} tensors only 0 .*; {expected}"):
            load(tmp_path / "other.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    key = "layer1.0.conv1.weight"
    for bad in (torch.nan, torch.inf, 1e300):  # the last one is finite in the file's float64 only
        state = make_state()
        state[key] = state[key].double()
        state[key].view(-1)[3] = bad
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(InputError, match=f"^{tmp_path}/bad.pth: {key} is not finite"):
            load(tmp_path / "bad.pth")
    state = make_state()
    torch.save({key: value.half() for key, value in state.items() if value.is_floating_point()}, tmp_path / "half.pth")
    assert torch.equal(load(tmp_path / "half.pth").backbone.get_parameter(f"network.{key}"), state[key].half().float())


def test_names_of_a_file_are_shown_without_their_terminal_codes(tmp_path: Path) -> None:
    torch.save({"\x1b[31mred\n" * 1000: torch.zeros(1)}, tmp_path / "red.pth")
    with pytest.raises(InputError) as error:
        load(tmp_path / "red.pth")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({0: torch.zeros(1), 1: torch.zeros(2)}, "a tensor's name there is 0, which is no text"),
        ({"model": {b"conv1.weight": torch.zeros(1)}}, "a tensor's name there is b'conv1.weight', which is no text"),
        ([torch.zeros(1)], "a list"),
        ({"epoch": 3, "model": {"lr": 0.1}}, "it holds no tensors, only epoch, model"),
        ({}, "it is an empty one"),
    ],
)
def test_what_is_no_state_dict_says_what_it_is(content: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value) == f"{path} is not a state dict (names and tensors): {expected}"


# ---- files that cannot be read ----

ALONE = "save its state dict alone, torch.save(model.state_dict(), file)"
AGAIN = "copy or download it again"


class Marker:
    """Makes a folder when it is unpickled."""

    path = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deep/weights.txt", "x")


def write_tar(path: Path) -> None:
    path.with_name("inside").write_text("x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inside"))


def cut(path: Path, kind: str) -> None:
    state = {"w": torch.zeros(10_000)}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:5000])


def flip(path: Path, part: bytes) -> None:
    """Change the first bytes of `part` in a file of torch.save."""
    torch.save(nn.Linear(1, 1).state_dict(), path)
    content = path.read_bytes()
    start = content.index(part)
    path.write_bytes(content[: start + 2] + b"XXX" + content[start + 5 :])


def save_script(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "numpy scalar": (
        lambda path: torch.save({"state_dict": {}, "best": np.float64(0.3)}, path),
        f"it holds Python objects (numpy scalar): {ALONE}",
    ),
    "numpy array": (lambda path: torch.save(np.zeros(3), path), f"it holds Python objects (numpy array): {ALONE}"),
    "Namespace": (
        lambda path: torch.save({"args": argparse.Namespace(lr=1)}, path),
        f"it holds Python objects (argparse.Namespace): {ALONE}",
    ),
    "old Namespace": (
        lambda path: torch.save(argparse.Namespace(lr=1), path, _use_new_zipfile_serialization=False),
        f"it holds Python objects (argparse.Namespace): {ALONE}",
    ),
    "both": (
        lambda path: torch.save([np.float32(1), argparse.Namespace(a=1)], path),
        f"it holds Python objects (numpy scalar, argparse.Namespace): {ALONE}",
    ),
    "module": (
        lambda path: torch.save(nn.Sequential(nn.Linear(1, 1)), path),
        f"it holds Python objects (a whole module, torch.nn.modules.container.Sequential): {ALONE}",
    ),
    "protocol 4": (
        lambda path: torch.save({"args": argparse.Namespace()}, path, pickle_protocol=4),
        f"it is a pickle of protocol 4, which is read by running it: {ALONE}",
    ),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps({"w": np.zeros(3)}, protocol=4)),
        f"it is a pickle of protocol 4, which is read by running it: {ALONE}",
    ),
    "program": (
        lambda path: path.write_bytes(pickle.dumps(Marker(), protocol=2)),
        f"it holds Python objects (posix.mkdir): {ALONE}",
    ),
    "TorchScript": (save_script, f"it is TorchScript, a program: {ALONE}"),
    "page": (
        lambda path: path.write_text("<html>404</html>"),
        "it is no file of torch.save (it begins with '<html>': a failed download?)",
    ),
    "text": (
        lambda path: path.write_text("\nAccess denied\nby order"),
        "it is no file of torch.save (it begins with 'Access denied': a failed download?)",
    ),
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"),
        "it is a pointer of Git LFS, and not the weights: run git lfs pull where it came from",
    ),
    "empty": (lambda path: path.touch(), f"it is empty (0 bytes): {AGAIN}"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "it is compressed (gzip): unpack it"),
    "zip": (write_zip, "it is a ZIP archive of other files (deep/weights.txt): unpack it"),
    "tar": (write_tar, "it is a tar archive: unpack it"),
    "cut": (lambda path: cut(path, "zip"), f"it is damaged or cut short: {AGAIN}"),
    "a flipped header": (lambda path: flip(path, b"PK\x03\x04"), f"it is damaged or cut short: {AGAIN}"),
    "a flipped pickle": (
        lambda path: flip(path, b"OrderedDict"),
        f"it is damaged or cut short: {AGAIN}",
    ),
    "cut old": (lambda path: cut(path, "old"), "it is damaged or cut short, or no file of torch.save"),
    "cut safetensors": (
        lambda path: cut(path, "safetensors"),
        f"it is a damaged file of safetensors, or cut short: {AGAIN}",
    ),
    "zeros": (lambda path: path.write_bytes(bytes(2000)), "it is damaged or cut short, or no file of torch.save"),
    "folder": (Path.mkdir, "it is a folder: name the file in it"),
    "missing": (lambda path: None, "there is no such file"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read_says_what_it_is(
    case: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, expected = UNREADABLE[case]
    monkeypatch.setattr(Marker, "path", str(tmp_path / "was_run"))
    path = tmp_path / f"weights{ending}"
    write(path)
    with pytest.raises(InputError) as error:
        weight_files.read_file(path)
    assert str(error.value) == f"cannot read weights {path}: {expected}"
    assert not (tmp_path / "was_run").exists()


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"w": torch.arange(3.0)}
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert torch.equal(weight_files.read_file(tmp_path / name)["w"], state["w"])
