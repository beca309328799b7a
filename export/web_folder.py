"""Makes a folder that any static host serves: a page on which a model runs in the visitor's browser.

    save_web(export, Path("exported_models/resnet18_web"))

The folder holds index.html, model.json (classes, thresholds, licence), model.onnx and ONNX Runtime Web. That comes from
its package at npm, if the file RUNTIME_PACKAGE lies in the cache folder; else the page fetches the same files from a
server of packages, and the browser compares them with their digests here. Nothing is built, and nothing is sent from
the page: its Content-Security-Policy allows no address but those of these files.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import statistics
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import calibration
from dataset.files import hash_file
from dataset.image_sizes import as_size
from dataset.json_files import to_json
from dataset.whole_files import replace_folder
from export.engines import IMAGE
from export.model_files import Export, put_text, save_proto
from export.onnx_models import MAX_BYTES, copy_proto, measure_weights
from models.licences import explain_licence, find_licence
from models.novelty import NOVEL
from utils import InputError, explain, make_visible, say

RUNTIME_VERSION = "1.30.0"
RUNTIME_PACKAGE = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"  # as `npm pack` calls it
RUNTIME_ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
RUNTIME_FILES = {  # their sizes and digests, as browsers take them (Subresource Integrity)
    SCRIPT: (73_054, "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    WASM: (14_239_897, "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}
LEAST_HALVED = 16_384  # numbers in a tensor whose weights get 16 bits
FLOAT16_MAX = float(np.finfo(np.float16).max)
MODEL = "model.onnx"
PAGE, FACTS, ADVICE = "index.html", "model.json", "README.md"


def save_web(export: Export, path: Path) -> None:
    """Write the folder `path`.

    Raises InputError if the package of ONNX Runtime Web is damaged or another version, or if the network is too large.
    """
    render = export.render
    assert render is not None
    runtime = read_runtime(export.cache_folder)
    export = replace(export, metadata=export.metadata | {"input": IMAGE, "gives_labels": False, "dynamic": []})
    model = halve_weights(export.onnx)
    size = measure_weights(model)
    if size > MAX_BYTES:
        raise InputError(f"a browser does not open {size / 1e9:.1f} GB of weights: choose a smaller MODEL_NAME")
    with replace_folder(path) as folder:
        save_proto(model, export, folder / MODEL, "fp16")
        for name, content in runtime.items():
            (folder / name).write_bytes(content)
        facts = make_facts(export.metadata, folder / MODEL, runtime)
        (folder / FACTS).write_text(to_json(facts, indent=1), encoding="utf-8")
        (folder / PAGE).write_text(make_page(render, facts), encoding="utf-8")
        advice = render("web_readme.md", facts=facts, folder=Markup(make_visible(path.name)))  # amid code
        put_text(path, folder, ADVICE, advice)


def halve_weights(model: Any) -> Any:
    """A copy of an ONNX ModelProto whose weights have 16 bits in the file. They are computed with in 32, as before.

    Those that 16 bits do not hold stay as they are, and so do small tensors: they take no room, and in some networks
    (the depthwise filters of EfficientNet) half of the error comes from them.
    """
    from onnx import TensorProto, helper, numpy_helper

    model, casts = copy_proto(model), []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        if weights.size < LEAST_HALVED or not np.abs(weights).max() <= FLOAT16_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}/16_bits"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    network = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *network])
    return model


# ---- ONNX Runtime Web ----


def read_runtime(cache_folder: Path | None) -> dict[str, bytes]:
    """The files of ONNX Runtime Web from its package in `cache_folder`, by their names in an exported folder.

    The large one is packed, since many hosts send files as they are. Empty if there is no package. Raises InputError
    if what is in it is not what is known of this version.
    """
    package = None if cache_folder is None else cache_folder / RUNTIME_PACKAGE
    if package is None or not package.is_file():
        say(
            f"the page will fetch ONNX Runtime Web from {RUNTIME_ADDRESS}; for a folder that needs no other server, "
            f"first: npm pack onnxruntime-web@{RUNTIME_VERSION} --pack-destination {cache_folder}"
        )
        return {}
    try:
        with tarfile.open(package) as archive:
            contents = {name: _read_member(archive, f"package/dist/{name}") for name in RUNTIME_FILES}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read {package}: {reason}; delete it, or fetch it again by npm pack") from error
    for name, content in contents.items():
        if make_integrity(content) != RUNTIME_FILES[name][1]:
            raise InputError(
                f"{name} in {package} is not that of version {RUNTIME_VERSION}: fetch it again by npm pack"
            )
    return {SCRIPT: contents[SCRIPT], f"{WASM}.gz": gzip.compress(contents[WASM], 9, mtime=0)}


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    with file:
        return file.read()


def make_integrity(content: bytes) -> str:
    """The digest of a file as browsers take it: "sha384-" and base64."""
    return f"sha384-{base64.b64encode(hashlib.sha384(content).digest()).decode()}"


def locate_runtime(runtime: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Where the page finds the file `name` of ONNX Runtime Web, and its size in bytes as it is sent."""
    for own in (name, f"{name}.gz"):
        if own in runtime:
            return {"address": own, "bytes": len(runtime[own])}
    size, integrity = RUNTIME_FILES[name]
    return {"address": f"{RUNTIME_ADDRESS}{name}", "bytes": size, "integrity": integrity}


# ---- the page ----


def make_facts(metadata: Mapping[str, Any], model: Path, runtime: Mapping[str, bytes]) -> dict[str, Any]:
    """What model.json says: all that the page needs to know of the file `model` and of ONNX Runtime Web."""
    thresholds = np.asarray(metadata["thresholds"], dtype=np.float32).tolist()
    digest = hash_file(model)
    licence = find_licence(metadata)
    return {
        "model_name": metadata["model_name"],
        "classes": [make_visible(name) for name in metadata["classes"]],
        "thresholds": thresholds,
        "threshold": statistics.median(thresholds),
        "min_labels": metadata.get("min_labels", 0),
        "max_labels": metadata.get("max_labels", 0),
        "abstention": make_abstention(metadata),
        "image_size": list(as_size(metadata["image_size"])),
        "resize_rule": metadata["resize_rule"],
        "calibration": metadata["applied_calibration"],
        "licence": licence,
        "licence_text": explain_licence(licence),
        # a browser that has the file of an earlier export asks for it by another address
        "model": {"address": f"{MODEL}?{digest[:12]}", "bytes": model.stat().st_size, "sha256": digest},
        "runtime": {
            "version": RUNTIME_VERSION,
            "script": locate_runtime(runtime, SCRIPT),
            "wasm": locate_runtime(runtime, WASM),
        },
    }


def make_abstention(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cut of doubt, and scale and bias (C,) from the file's logits to those it was tuned on; see Predictor.abstain.

    None if the model decides on every image.
    """
    if metadata.get("abstention") is None:
        return None
    methods = metadata.get("calibration") or {}
    relation: Mapping[str, Any] = {"scale": [1.0], "bias": [0.0]}
    if "platt" in methods:
        used = methods.get(metadata["applied_calibration"], relation)
        relation = calibration.relate(methods["platt"], used)
    shape = len(metadata["classes"])
    both = {name: np.broadcast_to(relation[name], shape).tolist() for name in ("scale", "bias")}
    return {"cut": metadata["abstention"]["cut"], **both}


def make_page(render: Callable[..., str], facts: Mapping[str, Any]) -> str:
    """The page index.html, bound by its policy to its own script and to the addresses in `facts`."""
    script = render("web_page.js", novel=NOVEL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    is_local = "integrity" not in facts["runtime"]["wasm"]
    policy = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}' 'wasm-unsafe-eval' blob:",  # blob: what the page itself has fetched
        "worker-src": "blob:",
        "connect-src": "'self'" if is_local else f"'self' {RUNTIME_ADDRESS}",
        "img-src": "blob: data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    text = "; ".join(f"{name} {value}" for name, value in policy.items())
    return render("web_page.html", facts=facts, policy=Markup(text), script=Markup(script))
