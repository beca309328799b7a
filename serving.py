"""Serves a saved model over HTTP, with a page on which one can try it.

    python serving.py [recipe.py ...] [--NAME value ...]

MODEL_PATH is a checkpoint, which runs in SERVING_ENGINE, or an exported file, which runs in its own engine. The paths
and answers are described in server/application.py. SIGTERM and Ctrl-C end the server: it first answers the requests
that have arrived, and its exit status is 0. Whoever lists processes sees a SERVING_TOKEN on the command line: write it
into this file, or into a recipe that others cannot read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from limits import Above0, Count, Port, Token, ZeroOrMore
from models import network_files

# ---- Serving ----
SERVING_HOST: str = "127.0.0.1"  # this machine only; 0.0.0.0: whoever reaches it
SERVING_TOKEN: Token = None  # requests must send it (Authorization: Bearer ...); None: everybody is answered
SERVING_PORT: Port = 8000  # 0: any that is free, which is printed
SERVING_ENGINE: Literal["torch", "onnxruntime", "openvino"] = "onnxruntime"  # a checkpoint runs in this
SERVING_BATCH_SIZE: Count = 32  # images of concurrent requests computed together, at most
SERVING_BATCH_WAIT_MS: ZeroOrMore = 2.0  # how long a batch waits for more while the model is free
SERVING_QUEUE_SIZE: Count = 256  # images waiting; beyond, a request is turned away with 503
SERVING_MAX_UPLOAD_MB: Above0 = 20.0  # of one request
SERVING_MAX_MEGAPIXELS: Above0 = 50.0  # of one image
SERVING_LOG: Path | None = None  # a file that gets a line for each request; nothing shortens it; None: no log

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds
    network_files.import_in_parts()

import importlib.util
import ipaddress
import signal
import socket
from functools import partial

import models_factory
import predictor
import utils
from dataset.files import hash_file
from evaluation import neighbours
from export import engines
from models.shared_cores import share_cores

PACKAGES = ("fastapi", "fastapi_offline", "httptools", "prometheus_client", "python_multipart", "uvicorn")


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise utils.InputError(f"serving needs {', '.join(missing)}: pip install -r requirements-serving.txt")
    from server.application import Service, look_at, make_app
    from server.connections import Server, derive_limits
    from server.monitoring import RequestLog
    from server.request_queue import BatchQueue

    utils.keep_freed_memory()
    listener = bind(SERVING_HOST, SERVING_PORT)  # first, since loading a model takes seconds
    warn_of_others(listener.getsockname()[0])
    log = RequestLog(SERVING_LOG) if SERVING_LOG else None
    model, engine = load_model()
    queue = BatchQueue(
        compute=partial(look_at, model),
        batch_size=SERVING_BATCH_SIZE,
        wait_seconds=SERVING_BATCH_WAIT_MS / 1000,
        size=SERVING_QUEUE_SIZE,
    )
    service = Service(
        model=model,
        engine=engine,
        queue=queue,
        max_pixels=round(SERVING_MAX_MEGAPIXELS * 1e6),
        sha256=hash_file(model.path),
    )
    max_bytes = round(SERVING_MAX_UPLOAD_MB * 2**20)
    app = make_app(service, max_bytes, token=SERVING_TOKEN, log=log)

    def announce() -> None:
        where = f"{name_address(listener)}, interface at /docs"
        utils.say(f"{config.MODEL_PATH} in {engine}: {where}; Ctrl-C ends it")
        utils.say(f"novelty of images: {neighbours.describe_reference(model)}")
        utils.say(*filter(None, [service.explain_maps()]))

    monitor = app.state.monitor
    server = Server(app, derive_limits(SERVING_QUEUE_SIZE, max_bytes), monitor.record, announce)
    monitor.watch("connections", "that are open", lambda: len(server.server_state.connections))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # uvicorn's own handlers would end with an exit status above 0
    with share_cores():
        server.run(sockets=[listener])
    if log:
        log.close()


def warn_of_others(address: str) -> None:
    """Warn if the address that the server listens at can be reached from other machines."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return
    if SERVING_TOKEN is None:
        consequence = "and everybody there may use the server: set SERVING_TOKEN, or SERVING_HOST = '127.0.0.1'"
    else:
        consequence = "and nothing is encrypted, SERVING_TOKEN neither: put a server that speaks HTTPS before this one"
    utils.warn(f"SERVING_HOST {SERVING_HOST} can be reached from other machines, {consequence}")


def load_model() -> tuple[predictor.Predictor, str]:
    """Load the model in MODEL_PATH, and let it compute one image. Returns it, and the name of its engine."""
    kind = engines.recognise(config.MODEL_PATH)
    wanted = SERVING_ENGINE if kind == "checkpoint" else "auto"
    engine = engines.choose_engine(wanted, kind, config.MODEL_PATH)
    model = predictor.load(
        config.MODEL_PATH,
        config.DEVICE,
        default_threshold=config.TH_MULTI_LABEL,
        engine=engine,
        cache_folder=config.CACHE_FOLDER,
        calibration=config.CALIBRATION,
    )
    if model.resizes:
        raise utils.InputError(
            f"{config.MODEL_PATH} resizes by itself, and the queue would hold images in full size: serve its "
            "checkpoint, or a file exported with EXPORT_RESIZE = False"
        )
    # An engine's first run takes longer than the others: no request should wait for it.
    model.compute(models_factory.make_example(model.image_size)[:1])
    return model, engine


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket to the address; it refuses connections until the server listens. Raises InputError if it cannot."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for a port whose server has just ended
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise utils.InputError(
            f"cannot serve at {host} port {port}: {error.strerror}: set SERVING_HOST or SERVING_PORT to another, 0 for "
            "any port that is free"
        ) from error
    return listener


def name_address(listener: socket.socket) -> str:
    """The URL of the server: `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    utils.run_script(main)
