"""models/network_files.py: packages whose files are imported without the rest, and the file that defines a network."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torchvision
from timm.models import model_entrypoint
from torchvision.models import get_model_builder

from models import backbones, network_files
from models.network_files import find_file, import_registry

FILES = {
    "__init__.py": "from drawn.first import *\nfrom drawn.inner import BIG\nfrom drawn import second\nWHOLE = True\n",
    "first.py": "ONE, __version__ = 1, '7'\n__all__ = ['ONE']\n",
    "second.py": "from drawn import inner\nfrom drawn.inner import SMALL\nTWO = 2\n",
    "third.py": "from drawn import WHOLE\n",
    "inner/__init__.py": "from drawn.inner.small import SMALL\nBIG = 'big'\n",
    "inner/small.py": "SMALL = 'small'\n",
}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `drawn` that is imported in parts."""
    for name, text in FILES.items():
        (tmp_path / "drawn" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drawn" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(network_files, "PACKAGES", {"drawn": ("first",), "drawn.inner": ("small",), "no_such": ()})
    network_files.import_in_parts()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "drawn"]:
        del sys.modules[name]


@pytest.mark.usefixtures("parts")
def test_a_file_is_imported_without_its_package() -> None:
    second = importlib.import_module("drawn.second")
    drawn = sys.modules["drawn"]
    assert second.TWO == 2
    assert second.SMALL == "small"
    assert drawn.second is second
    assert (drawn.ONE, drawn.__version__) == (1, "7")
    assert not {"WHOLE", "third"} & vars(drawn).keys()
    assert "BIG" not in vars(sys.modules["drawn.inner"])


@pytest.mark.usefixtures("parts")
def test_a_package_is_whole_as_soon_as_it_is_asked_for_more() -> None:
    second = importlib.import_module("drawn.second")
    drawn = importlib.import_module("drawn")
    assert drawn.WHOLE
    assert sys.modules["drawn"] is drawn
    assert drawn.second is second
    assert drawn.inner.BIG == "big"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = drawn.nothing


@pytest.mark.usefixtures("parts")
def test_a_file_may_ask_its_package_for_more() -> None:
    importlib.import_module("drawn.third")
    assert "WHOLE" in vars(sys.modules["drawn"])


@pytest.mark.usefixtures("parts")
def test_all_names_of_a_package_are_those_of_the_whole() -> None:
    names: dict[str, object] = {}
    exec("from drawn import *", names)
    assert names["WHOLE"] is True
    assert names["ONE"] == 1


@pytest.mark.usefixtures("parts")
def test_what_python_asks_of_every_module_imports_nothing() -> None:
    drawn = sys.modules["drawn"]
    assert not hasattr(drawn, "__warningregistry__")
    assert "WHOLE" not in vars(drawn)


def test_what_was_imported_before_stays_as_it_is() -> None:
    network_files.import_in_parts()
    assert type(sys.modules["timm"]) is type(sys.modules["torchvision"]) is type(sys)
    assert timm.is_model("resnet18")


def test_the_file_of_each_torchvision_network_is_found() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) >= 80
    assert {name: find_file("torchvision.models", name) for name in names} == {
        name: get_model_builder(name).__module__ for name in names
    }


def test_the_file_of_a_timm_network_is_found() -> None:
    names = [*timm.list_models()[::50], *(name.partition(".")[0] for name in backbones.TIMM_NAMES.values())]
    assert {name: find_file("timm.models", name) for name in names} == {
        name: model_entrypoint(name).__module__ for name in names
    }


@pytest.mark.parametrize("name", ["", "conv3x3", "timm/resnet18", "resnet18.a1_in1k", "resnet[0-9]+", "\ud800"])
def test_other_names_have_no_file(name: str) -> None:
    assert find_file("torchvision.models", name) is None


def test_a_network_that_timm_has_renamed_is_known() -> None:
    old = "vit_tiny_patch16_224_in21k"
    assert find_file("timm.models", old) is None
    assert import_registry(old).is_model(old)
    assert not import_registry("no_such_network").is_model("no_such_network")
