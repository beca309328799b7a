"""A prediction imports what it needs, and no more: a process of its own predicts by three networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import models_factory
import predictor
from models import checkpoints

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("efficientnet_lite0", "timm/vit_tiny_patch16_224", "resnet18")
# what a prediction of one picture does without, by what it would bring in
NEEDLESS = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "triton",  # torch's compiler and exporter
    "torchvision.datasets", "torchvision.transforms.v2", "torchvision.models.detection", "torchvision.ops.roi_align",
    "timm.models.beit", "timm.models.resnet", "timm.data.transforms", "huggingface_hub",
    "trainer.build", "trainer.novelty", "dataset.loading", "dataset.augmentations",
    "pandas", "matplotlib", "scipy", "sklearn", "jinja2", "rich.progress", "tensorboard", "onnx", "onnxruntime",
)  # fmt: skip
SCRIPT = """
import json, runpy, sys
root, arguments, checkpoints, image = json.loads(sys.argv[1])
sys.path.insert(0, root)
sys.argv = ["testing.py", *arguments]
runpy.run_path(f"{root}/testing.py", run_name="__main__")
import predictor
found = {}
for path in checkpoints:
    (record,) = predictor.load(path, "cpu").predict(image)
    found[path] = record.probabilities.tolist()
imported = sorted(sys.modules)
import timm, torchvision
networks = len(timm.list_models()), len(torchvision.models.list_models())
from timm.models._hub import has_hf_hub
print("\\n" + json.dumps([imported, found, networks, has_hf_hub(), timm.create_model("resnet18").num_classes]))
"""


def test_a_prediction_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """The bits are those of a process that has all of timm and torchvision, and all of both is there if asked for."""
    paths = []
    for network in NETWORKS:
        torch.manual_seed(0)
        model = models_factory.make_model(network, 3, image_size=64)
        values = {"model_name": network, "head": "linear_bn", "image_size": 64, "resize_rule": "squash"}
        paths.append(str(tmp_path / f"{network.replace('/', '-')}.pt"))
        checkpoints.save(Path(paths[-1]), {"model_state": model.state_dict(), "classes": ["a", "b", "c"]} | values)
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = str(tmp_path / "noise.png")
    Image.fromarray(noise).save(image)
    arguments = [f"--LOCAL_ROOT={tmp_path}", f"--MODEL_PATH={paths[0]}", f"--TEST_IMAGES_DIR={image}", "--DEVICE=cpu"]
    command = [sys.executable, "-c", SCRIPT, json.dumps([str(ROOT), arguments, paths, image])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported, found, networks, has_hub, num_classes = json.loads(done.stdout.splitlines()[-1])
    assert {"timm.models.efficientnet", "timm.models.vision_transformer", "torchvision.models.resnet"} <= {*imported}
    assert [name for name in NEEDLESS if name in imported] == []
    for path in paths:
        (record,) = predictor.load(path, "cpu").predict(image)
        assert found[path] == record.probabilities.tolist()
    assert networks[0] > 1000
    assert networks[1] > 100
    assert has_hub
    assert num_classes == 1000
