"""Makes files of LiteRT (.tflite), which was TensorFlow Lite: for phones and small boards.

    save_litert(Export(...), path)

A file takes one image at a time. The metadata is `multilabel.json` in a ZIP archive after the model, where the format
keeps what belongs to a model: `unzip -p model.tflite multilabel.json` prints it, and runtimes read past it.

    python -m export.litert_models PROGRAM.pt2 MODEL.tflite    # what save_litert runs

The converter runs in a process of its own: it starts threads of JAX, after which this process could not fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from dataset.whole_files import write_atomically
from export.engines import METADATA
from export.model_files import Export, require_plain
from export.onnx_models import ADVICE
from export.pt2_models import make_program
from models_factory import make_example
from utils import InputError


def save_litert(export: Export, path: Path) -> None:
    """Write LiteRT in float32, for one image of one size. Raises InputError if its converter does not take the network.

    The converter (litert-torch 0.10) does not take axes that vary, so that "batch" is not in the file's "dynamic".
    """
    require_plain(export, "LiteRT")
    if "size" in export.metadata["dynamic"]:
        raise InputError(f"LiteRT takes one size only: {ADVICE}")
    program = make_program(export.network, make_example(export.metadata["image_size"]), dynamic=())
    metadata = json.dumps(export.metadata | {"precision": "fp32", "dynamic": []})

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch.export.save(program, Path(folder) / "program.pt2")
            command = [sys.executable, "-m", "export.litert_models", f"{folder}/program.pt2", str(temporary.absolute())]
            root = Path(__file__).resolve().parents[1]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
            raise InputError(f"LiteRT cannot express this network: {reason}; another of EXPORT_FORMATS may still work")
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(f"{METADATA}.json", metadata)

    write_atomically(path, write)


def convert(program: str, path: str) -> None:
    """Convert the file of torch.export `program`, of a network on one image, to LiteRT without metadata."""
    import litert_torch  # pyright: ignore[reportMissingImports]

    loaded = torch.export.load(program)
    assert loaded.example_inputs
    model = litert_torch.convert(loaded.module(), loaded.example_inputs[0])
    Path(path).write_bytes(model.model_content())


if __name__ == "__main__":
    convert(*sys.argv[1:])
