"""Makes files of LiteRT (.tflite), which was TensorFlow Lite: for phones and small boards.

    save_litert(Export(...), path)

The metadata is `multilabel.json` in a ZIP archive after the model, where the format keeps files that belong to a model:
`unzip -p model.tflite multilabel.json` prints it, and runtimes read past it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from dataset.whole_files import write_atomically
from export.engines import METADATA, silence
from export.model_files import Export, require_plain, require_sizes
from export.onnx_models import ADVICE, explain, use_plain_layers
from export.pt2_models import name_axes
from models_factory import make_example
from utils import InputError


def save_litert(export: Export, path: Path) -> None:
    """Write LiteRT in float32. Raises InputError if its converter does not take the network."""
    require_plain(export, "LiteRT")
    dynamic, example = export.metadata["dynamic"], make_example(export.metadata["image_size"])
    metadata = json.dumps(export.metadata | {"precision": "fp32"})
    advice = ADVICE if "size" in dynamic else "another of EXPORT_FORMATS may still work"
    try:
        with use_plain_layers(export.network), silence():
            import litert_torch

            model = litert_torch.convert(
                export.network, (example if "batch" in dynamic else example[:1],), dynamic_shapes=name_axes(dynamic)
            )
    except Exception as error:  # the converter has a class of errors for each of its steps
        raise InputError(f"LiteRT cannot express this network: {explain(error)}; {advice}") from error

    def write(temporary: Path) -> None:
        temporary.write_bytes(model.model_content())
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(f"{METADATA}.json", metadata)
        require_sizes(export, "litert", temporary, "fp32")

    write_atomically(path, write)
