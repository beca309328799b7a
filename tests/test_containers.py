"""containers/: the files that its files name exist, their commands are this project's, and a server started as in the
container, without what its image leaves out, is found healthy and ends as it should.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper
from test_house import FOLDERS

import config
import overrides
import serving
import training
from export import model_files
from export.engines import METADATA

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("*.Dockerfile"))
SCRIPTS = {"serving.py": serving, "training.py": training}
TOKEN = "0123abcd"


def read_instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, (name, what follows), with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines())]


def read_all(path: Path, name: str) -> list[str]:
    """What follows each instruction `name` of a Dockerfile."""
    return [rest for instruction, rest in read_instructions(path) if instruction == name]


def read_compose() -> dict[str, Any]:
    """compose.yaml with the defaults of its variables, as Docker Compose puts them in."""
    text = (CONTAINERS / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def read_unit() -> dict[str, list[str]]:
    """{setting: values} of the [Service] of the systemd unit; a setting may stand there several times."""
    settings: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (CONTAINERS / "classifier.service").read_text(), flags=re.M):
        settings.setdefault(name, []).append(value)
    return settings


def read_health_check() -> list[str]:
    (command,) = re.findall(r"CMD (\[.*\])$", read_all(CONTAINERS / "serving.Dockerfile", "HEALTHCHECK")[-1])
    return json.loads(command)


@pytest.fixture
def token(tmp_path: Path) -> str:
    """The recipe with the token, at a path of this machine."""
    (tmp_path / "serving_token.py").write_text(f"SERVING_TOKEN = {TOKEN!r}\n")
    return str(tmp_path / "serving_token.py")


# ---- files ----


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_and_installs_is_there(path: Path) -> None:
    copied: set[str] = set()
    for name, rest in read_instructions(path):
        words = shlex.split(rest)
        if name == "COPY" and not words[0].startswith("--from"):
            files = {file.name for word in words[:-1] for file in ROOT.glob(word)} if words[0] != "." else {"."}
            assert files, rest
            copied |= files
        for requirements in re.findall(r"-r (requirements\S*\.txt)", rest):
            assert {requirements, *find_included(requirements)} <= copied


def find_included(name: str) -> set[str]:
    """The files of requirements that the file `name` includes, and those that they include."""
    names = set(re.findall(r"^-r (\S+)$", (ROOT / name).read_text(), flags=re.M))
    return names.union(*map(find_included, names))


def test_images_get_what_runs_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "first of all, nothing: no data, no models, no secrets"
    assert {line for line in lines if line.endswith("/")} == {
        "**/__pycache__/",
        *(f"!{folder}/" for folder in (*FOLDERS, "recipes")),
    }
    files = [line for line in lines[1:] if not line.endswith("/")]
    assert files == ["!*.py", "!requirements*.txt", "!LICENSE", "serving_token.py"], "the last is the secret"


def test_both_images_have_one_python_and_no_root() -> None:
    assert len({value for path in DOCKERFILES for value in read_all(path, "ARG") if "PYTHON_IMAGE=" in value}) == 1
    assert {read_all(path, "USER")[-1] for path in DOCKERFILES} == {"10001:10001"}


# ---- commands ----


def test_the_image_serves_what_is_mounted_to_other_machines(token: str) -> None:
    python, script, *arguments = json.loads(read_all(CONTAINERS / "serving.Dockerfile", "ENTRYPOINT")[-1])
    assert (python, script) == ("python", "serving.py")
    (recipe, *more) = read_compose()["services"]["serving"]["command"]
    (secret,) = read_compose()["services"]["serving"]["secrets"]
    assert recipe == f"/run/secrets/{secret['target']}", "where Compose puts the secret"
    overrides.apply([*arguments, token, *more], config, serving)
    assert serving.SERVING_HOST == "0.0.0.0"
    assert serving.SERVING_TOKEN == TOKEN
    assert Path("/models/model.onnx") == config.MODEL_PATH
    assert Path("/tmp") == config.LOCAL_ROOT, "the only folder that may be written"
    assert f"127.0.0.1', {serving.SERVING_PORT}" in read_health_check()[-1]


def test_a_model_may_lie_near_the_root() -> None:
    """As in a container, where nobody looks for marks above the root."""
    for path in ("/model.onnx", "/models/model.onnx", "/a/b/c/model.onnx"):
        assert model_files.find_mark(Path(path)) is None


def test_compose_says_what_the_dockerfiles_say() -> None:
    services = read_compose()["services"]
    assert {service["build"]["dockerfile"] for service in services.values()} == {
        f"containers/{path.name}" for path in DOCKERFILES
    }
    serving_service = services["serving"]
    assert serving_service["healthcheck"]["test"] == ["CMD", *read_health_check()]
    (port,) = serving_service["ports"]
    assert [port.rpartition(":")[2]] == read_all(CONTAINERS / "serving.Dockerfile", "EXPOSE")
    assert serving_service["environment"]["OMP_NUM_THREADS"] == serving_service["deploy"]["resources"]["limits"]["cpus"]
    assert "gpu" in services["training"]["profiles"]


def test_the_unit_starts_the_server(token: str) -> None:
    unit = read_unit()
    (command,), (folder,), (credential,) = unit["ExecStart"], unit["WorkingDirectory"], unit["LoadCredential"]
    python, script, recipe, *arguments = command.split()
    assert (python, script) == (f"{folder}/.venv/bin/python", "serving.py")
    assert recipe == f"%d/{credential.partition(':')[0]}", "where systemd shows the file"
    overrides.apply([token, *arguments], config, serving)
    assert serving.SERVING_HOST == "127.0.0.1", "a server that speaks HTTPS stands before it"
    assert serving.SERVING_TOKEN == TOKEN
    assert Path(f"/var/cache/{unit['CacheDirectory'][0]}") == config.LOCAL_ROOT
    threads = re.findall(r"OMP_NUM_THREADS=(\d+)", " ".join(unit["Environment"]))
    assert [f"{threads[0]}00%"] == unit["CPUQuota"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    python = tmp_path / "opt" / "classifier" / ".venv" / "bin" / "python"
    for folder in (units, python.parent, tmp_path / "usr" / "lib" / "systemd" / "system"):
        folder.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    text = (CONTAINERS / "classifier.service").read_text()
    targets = [path for path in Path("/usr/lib/systemd/system").glob("*.*") if path.suffix in (".target", ".slice")]
    for path in targets:
        shutil.copy(path, tmp_path / "usr" / "lib" / "systemd" / "system")

    def verify(text: str) -> str:
        (units / "classifier.service").write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", "classifier.service"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stderr + ("" if result.returncode == 0 else f"status {result.returncode}")

    assert verify(text) == ""
    assert "MemoryMaximum" in verify(text.replace("MemoryMax=", "MemoryMaximum=")), "it reads every line"


def test_the_documented_training_command_is_one() -> None:
    text = (ROOT / "docs" / "deploying.md").read_text()
    commands = re.findall(r"classifier-training (?:--nproc-per-node=4 )?(training\.py .*)$", text, flags=re.M)
    assert len(commands) == 2
    for command in commands:
        script, *arguments = command.split()
        overrides.apply(arguments, config, SCRIPTS[script])
        for path in (config.TRAINED_MODELS_FOLDER, config.CACHE_FOLDER, config.TENSORBOARD_FOLDER):
            assert Path("/runs") in path.parents, "/app may not be written, and what lies in it is lost"
        assert Path("/runs") in config.PRETRAINED_MODELS_FOLDER.parents
        assert Path("/data") in config.TRAIN_IMAGES_DIR.parents


# ---- a server as in the image ----


def write_mean_colour(path: Path, metadata: dict[str, Any]) -> None:
    """Write an ONNX file like an exported one; the probabilities (B, 3) are mean red, green and blue, over 255."""
    inputs = [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 3, 32, 32])]
    outputs = [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", 3])]
    constants = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array(255, np.float32), "white"),
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["probabilities"]),
    ]
    graph = helper.make_graph(nodes, "mean colour", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA: json.dumps(metadata | {"precision": "fp32"})})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """serving.py with an ONNX file and the entry point's words, and its port; what the image leaves out is missing."""
    folder = tmp_path_factory.mktemp("image")
    metadata = {
        "model_name": "mean_colour", "head": "none", "image_size": 32, "resize_rule": "squash",
        "classes": ["red", "green", "blue"],
        "best_threshold": 0.5, "thresholds": [0.5] * 3, "output": "probabilities", "applied_calibration": "none",
        "dynamic": ["batch"],
    }  # fmt: skip
    write_mean_colour(folder / "m.onnx", metadata)
    left_out = re.findall(r'^ARG LEAVE_OUT="(.*)"$', (CONTAINERS / "serving.Dockerfile").read_text(), flags=re.M)[0]
    # Python imports sitecustomize when it starts; a module that is None there cannot be imported
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({left_out.split('|')}))\n"
    (folder / "sitecustomize.py").write_text(blocked)
    _, *entry = json.loads(read_all(CONTAINERS / "serving.Dockerfile", "ENTRYPOINT")[-1])
    local = ["--SERVING_HOST=127.0.0.1", "--SERVING_PORT=0", f"--LOCAL_ROOT={folder}", f"--MODEL_PATH={folder}/m.onnx"]
    process = subprocess.Popen(
        [sys.executable, *entry, *local],
        cwd=ROOT,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    said = line = process.stdout.readline()
    while line and "http://" not in line:
        said += (line := process.stdout.readline())
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    assert found, said
    yield process, int(found[1])
    process.kill()
    process.wait()
    process.stdout.close()


def ask_for_health(port: int) -> object:
    """The exit status of the health check's program, whose port is another here."""
    *_, code = read_health_check()
    ast.parse(code)
    with pytest.raises(SystemExit) as exit_info:
        exec(code.replace("8000", str(port)), {})
    return exit_info.value.code


def test_the_server_of_the_image_is_healthy_until_sigterm_ends_it(server: tuple[subprocess.Popen[str], int]) -> None:
    process, port = server
    assert not ask_for_health(port), "status 0"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, "it ends in order"
    with pytest.raises(ConnectionRefusedError):
        ask_for_health(port)
