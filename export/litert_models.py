"""Makes files of LiteRT (.tflite), which was TensorFlow Lite: for phones and small boards.

    save_litert(Export(...), path)

A file takes one image at a time. The metadata is `multilabel.json` in a ZIP archive after the model, where the format
keeps what belongs to a model: `unzip -p model.tflite multilabel.json` prints it, and runtimes read past it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from dataset.whole_files import write_atomically
from export.engines import METADATA, silence
from export.model_files import Export, require_plain
from export.onnx_models import ADVICE, explain, use_plain_layers
from models_factory import make_example
from utils import InputError


def save_litert(export: Export, path: Path) -> None:
    """Write LiteRT in float32, for one image of one size. Raises InputError if its converter does not take the network.

    The converter (litert-torch 0.10) does not take axes that vary, so that "batch" is not in the file's "dynamic".
    """
    require_plain(export, "LiteRT")
    if "size" in export.metadata["dynamic"]:
        raise InputError(f"LiteRT takes one size only: {ADVICE}")
    metadata = json.dumps(export.metadata | {"precision": "fp32", "dynamic": []})
    with use_plain_layers(export.network), silence():
        import litert_torch  # here: its import prints

        try:
            model = litert_torch.convert(export.network, (make_example(export.metadata["image_size"])[:1],))
        except Exception as error:  # the converter has a class of errors for each of its steps
            raise InputError(
                f"LiteRT cannot express this network: {explain(error)}; another of EXPORT_FORMATS may still work"
            ) from error

    def write(temporary: Path) -> None:
        temporary.write_bytes(model.model_content())
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(f"{METADATA}.json", metadata)

    write_atomically(path, write)
