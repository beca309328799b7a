"""The files of torchvision and timm that define networks, and how a script imports one of them instead of all.

    import_in_parts()    # first of all; by scripts, since it is for the whole process
    file = find_file("timm.models", "tf_efficientnet_lite0")    # "timm.models.efficientnet"
    registry = import_registry("tf_efficientnet_lite0")

Python runs a package's __init__.py before any file in it. Those of torchvision and timm import all their networks,
detectors and data sets, and torch's compiler: that takes longer than torch itself, and a script needs one network.
After `import_in_parts`, such a package has not run its __init__.py yet. It does as soon as somebody asks the package
itself for something: `timm.create_model` works as ever, and then takes as long as ever.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

# keys: packages, each after the one that it lies in; values: files of it that are quick to import, and in which a name
# is looked for before its __init__.py runs, since the files of networks ask the package for it
PACKAGES: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.models": (),
    "torchvision.ops": ("misc", "stochastic_depth"),
    "timm": ("version",),
    "timm.data": ("constants",),
    "timm.models": (),
}
# how networks are entered in the lists of both packages: a decorator, perhaps others, and the function
REGISTERED = re.compile(rb"^@register_model\b.*\n(?:[@ )].*\n)*def (\w+)\(", re.MULTILINE)

HUB = "timm.models._hub"  # the file of timm that asks for huggingface_hub

_lock = threading.RLock()  # held while an __init__.py runs
_running: set[str] = set()  # the packages whose __init__.py runs


class PartialPackage(ModuleType):
    """A package whose __init__.py has not run yet; see above."""

    def __getattr__(self, name: str) -> Any:
        if name != "__all__":
            for file in PACKAGES[self.__name__]:
                module = importlib.import_module(f"{self.__name__}.{file}")
                if hasattr(module, name):
                    return getattr(module, name)
            # in others a function may have the name of its file, as torchvision.models.alexnet, and is meant
            if "." not in self.__name__ and importlib.util.find_spec(f"{self.__name__}.{name}"):
                return importlib.import_module(f"{self.__name__}.{name}")
        if name == "__all__" or not name.startswith("__"):  # Python asks modules for several that they may not have
            complete(self.__name__)
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(self)[name]


def import_in_parts() -> None:
    """From now on, import files of PACKAGES without the rest. A package that was imported before stays as it is."""
    for name in PACKAGES:
        outer, _, inner = name.rpartition(".")
        if name in sys.modules or (outer and not isinstance(sys.modules.get(outer), PartialPackage)):
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:  # it is not installed: the import that needs it will say so
            continue
        package = importlib.util.module_from_spec(spec)
        package.__class__ = PartialPackage
        sys.modules[name] = package
        if outer:
            setattr(sys.modules[outer], inner, package)


def complete(name: str) -> None:
    """Import all of the package `name`, if only parts of it are imported yet."""
    package = importlib.import_module(name)
    with _lock:  # other threads wait until the package is whole
        if not isinstance(package, PartialPackage) or name in _running:
            return
        _running.add(name)
        spec = package.__spec__
        assert spec is not None
        assert spec.loader is not None
        try:
            spec.loader.exec_module(package)
        finally:
            _running.remove(name)
        package.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
        if HUB in sys.modules and name == "timm.models":
            importlib.reload(sys.modules[HUB])  # now with huggingface_hub, see `import_registry`


@functools.cache
def find_file(package: str, network: str) -> str | None:
    """The module of `package` ("torchvision.models" or "timm.models") that defines `network`; None if none does."""
    spec, name = importlib.util.find_spec(package), network.encode(errors="replace")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        for file in Path(folder).glob("*.py"):
            text = file.read_bytes()
            if b"def %b(" % name in text and name in REGISTERED.findall(text):
                return f"{package}.{file.stem}"
    return None


def import_registry(network: str) -> ModuleType:
    """timm's registry of networks, with at least `network` in it, if timm has such a network."""
    file = find_file("timm.models", network)
    if file is None:  # as of those that timm has renamed
        complete("timm.models")
        return importlib.import_module("timm.models._registry")
    if isinstance(sys.modules["timm.models"], PartialPackage) and "huggingface_hub" not in sys.modules:
        # timm imports it whole to download weights, which a part of timm does not do: here it seems not installed
        sys.modules["huggingface_hub"] = None  # pyright: ignore[reportArgumentType]
        try:
            importlib.import_module(HUB)
        finally:
            del sys.modules["huggingface_hub"]
    importlib.import_module(file)
    return importlib.import_module("timm.models._registry")
