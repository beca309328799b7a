"""The HTTP application of serving.py: FastAPI, around a model and its queue.

    POST /predict                          image files as multipart/form-data, or JSON as for the next path
    POST /map                              one image file and a class -> a JPEG of where the model sees that class
    POST /multilabel-image-classification  PaddleX's: {"image": base64} -> {"result": {"categories": ..., "image": ...}}
    GET  /                                 a page on which one can try the model
    GET  /labels                           the classes and their thresholds
    GET  /health                           the model, and how busy the server is
    GET  /metrics                          numbers for Prometheus
    GET  /docs                             the description of all this in OpenAPI

If one image of a request cannot be read, the whole request is refused, and the message names the image. Every error has
PaddleX's form: {"logId": ..., "errorCode": the HTTP status, "errorMsg": one line}.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.routing import Route
from torch import Tensor

import metrics
import utils
from dataset.decoding import DECODER_ERRORS, decode_bytes, open_image, tell_content
from evaluation import pages
from evaluation.map_maker import MapMaker
from models.novelty import NOVEL
from models_factory import make_example
from predictor import JPEG_QUALITY, Predictor, Record
from server.access import TokenGuard
from server.errors import ERROR_HANDLERS, Error, join_errors
from server.image_readers import ImageReaders
from server.monitoring import Monitor, RequestLog, RequestWatch
from server.parsing import parse_form, parse_json, parse_map_form
from server.request_queue import BatchQueue
from server.uploads import BodyMemory, UploadGuard, UploadLimits, derive_limits, read_type, require_room
from utils import InputError

PADDLEX_PATH = "/multilabel-image-classification"
MAX_PICTURE_SIDE = 2000  # pixels, longest side of the picture in an answer
MAP_SIDE = 640  # pixels, longest side of a map
JPEG = "image/jpeg"
NO_MAPS = "Start the server with --SERVING_ENGINE torch, and a checkpoint (.pt) as MODEL_PATH."
MAX_SCANS = 64  # of a JPEG; progressive ones have 10 or so, and each goes over all pixels
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF files
SCANS_OF_A_PASS = 3  # so many scans take as long as decoding the pixels once

Probability = Annotated[float, Field(ge=0, le=1)]
Thresholds = Probability | list[Probability] | dict[Literal["default"] | int, Probability] | None


class Label(BaseModel):
    index: int
    name: str
    probability: float
    threshold: float


class Prediction(BaseModel):
    file: str
    labels: list[Label] = Field(description="the most probable first")
    probabilities: list[float] = Field(description="of every class, in the order of /labels")
    novelty: float | None = Field(
        None,
        description="the share of training images that are nearer to another one than this image is to any: at 1 it is "
        "farther away than all; left out where the model does not compare, see /health",
    )
    abstains: bool | None = Field(
        None, description="whether the model, at its own thresholds, leaves this image to a person; not of every model"
    )


class Predictions(BaseModel):
    predictions: list[Prediction] = Field(description="one for each file, in the order in which they were sent")


class InferenceParams(BaseModel):
    threshold: Thresholds = Field(None, description="as beside the image, where newer versions of PaddleX have it")
    topK: Annotated[int, Field(ge=1)] | None = Field(None, description="the most labels of an answer")


class PaddleXRequest(BaseModel):
    """Describes what `parse_json` takes."""

    image: str = Field(description="the image file in base64; addresses are not fetched")
    threshold: Thresholds = Field(
        None,
        description="a number for all classes, a list with one for each class, or an object of class index -> number "
        "with a `default`; without it the model's thresholds are used",
    )
    inferenceParams: InferenceParams | None = None
    visualize: bool | None = Field(None, description="false: the answer has no picture, and comes sooner")


class Category(BaseModel):
    id: int
    name: str
    score: float


class PaddleXResult(BaseModel):
    categories: list[Category] = Field(description="the most probable first")
    image: str | None = Field(
        None, description="the picture above its labels, a JPEG in base64; left out where visualize is false"
    )
    abstains: bool | None = Field(None, description="as at /predict")


class PaddleXAnswer(BaseModel):
    logId: str
    errorCode: Literal[0] = 0
    errorMsg: Literal["Success"] = "Success"
    result: PaddleXResult


class ServedClass(BaseModel):
    index: int
    name: str
    threshold: float


class Labels(BaseModel):
    classes: list[ServedClass]
    threshold: float = Field(description="a single one for all classes")
    min_labels: int = Field(description="every image gets at least so many labels: its most probable classes")
    max_labels: int = Field(description="no image gets more labels; 0: any number")


class Health(BaseModel):
    logId: str
    errorCode: Literal[0] = 0
    errorMsg: Literal["Healthy"] = "Healthy"
    model: str
    file: str
    sha256: str | None = Field(description="of the model's file")
    trained: str | None = Field(description="when the model was saved in training, if its file says so")
    version: str = Field(description="of this server")
    engine: str
    uptime_seconds: float
    novelty: bool = Field(description="whether answers of /predict say how unlike the training images an image is")
    maps: bool = Field(description="whether /map answers, which needs a checkpoint in PyTorch")
    queue_length: int = Field(description="images that were accepted and are not answered yet")


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "no image, an unknown field, or a body that is not what it says"},
    401: {"model": Error, "description": "the server has a token, and the request does not send it"},
    408: {"model": Error, "description": "the request took too long to arrive"},
    413: {"model": Error, "description": "the request has too many bytes, or an image too many pixels"},
    415: {"model": Error, "description": "neither files nor JSON, or not an image of a known kind"},
    422: {"model": Error, "description": "a damaged image, or a value that is not allowed"},
    500: {"model": Error, "description": "the model gives no probabilities for this image, or the server failed"},
    503: {"model": Error, "description": "there is no room for more: try again after the seconds in Retry-After"},
}


def describe_request() -> dict[str, Any]:
    """The schema of PaddleXRequest, in itself: OpenAPI would look for what it refers to in another place."""
    schema = PaddleXRequest.model_json_schema()
    schema["properties"]["inferenceParams"] = schema.pop("$defs")[InferenceParams.__name__]
    return schema


JSON_CONTENT = {"application/json": {"schema": describe_request()}}
FORM_CONTENT = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["files"],
            "properties": {
                "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                "threshold": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "description": "for all classes; without it the model's thresholds are used",
                },
            },
        }
    }
}
MAP_CONTENT = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["files", "label"],
            "properties": {
                "files": {"type": "string", "format": "binary", "description": "one image"},
                "label": {"type": "string", "description": "of a class: its index, or its name if that is no number"},
            },
        }
    }
}
MAP_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {JPEG: {}},
        "description": f"the picture, at most {MAP_SIDE} pixels a side, under the map's colours",
    },
    409: {"model": Error, "description": "this server has no maps, see /health"},
}


class Answer(NamedTuple):
    """What the model says of one image."""

    probabilities: NDArray[np.float32]  # (C,)
    novelty: float | None = None  # see models/novelty.py; None: not known


def look_at(model: Predictor, images: Tensor) -> list[Answer]:
    """What the queue computes: an answer for each of the images uint8 (B, 3, H, W)."""
    seen = model.look(images)
    novelty = [None] * len(images) if seen.novelty is None else seen.novelty.tolist()
    return [Answer(row, value) for row, value in zip(seen.probabilities, novelty, strict=True)]


class Service:
    """A model, its queue, and the threads that decode images.

    `engine` is the name of the model's engine, and `sha256` the digest of its file. An image may have up to
    `max_pixels` pixels.
    """

    def __init__(
        self, model: Predictor, engine: str, queue: BatchQueue[Answer], max_pixels: int, sha256: str | None = None
    ) -> None:
        self.model, self.engine, self.queue, self.max_pixels, self.sha256 = model, engine, queue, max_pixels, sha256
        self.readers = ImageReaders(max_pixels)
        self.maps = MapMaker(model, reads_file=False)
        values = self.maps.compute(make_example(model.image_size)[0], [0])  # says whether this network has maps
        if values is not None:  # the first drawing loads what it needs, for which no request should wait
            encode_map(self.maps, Image.new("RGB", (8, 8)), values[0])
        self.start = time.monotonic()

    @asynccontextmanager
    async def run(self, _: FastAPI) -> AsyncIterator[None]:
        """Runs the queue from the application's start to its end, when all requests have been answered."""
        running = asyncio.create_task(self.queue.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.readers.close()

    async def compute(self, contents: Sequence[bytes], names: Sequence[str]) -> list[Answer]:
        """An answer for each image file, from their contents; their names are for messages.

        Raises HTTPException if the queue is full, or if a file cannot be read as an image.
        """
        require_room(self.queue, len(contents))
        with self.queue.hold(len(contents)):
            works = await asyncio.to_thread(measure_images, contents, names, self.max_pixels)
            computing = map(self._compute_image, contents, names, works)
            results = await asyncio.gather(*computing, return_exceptions=True)
        answers = [result for result in results if not isinstance(result, BaseException)]
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise join_errors(errors)
        return answers

    async def _compute_image(self, content: bytes, name: str, work: int) -> Answer:
        image = await self.readers.run(work, partial(self._read, content, name))
        try:
            return await self.queue.compute(image)
        except InputError as error:  # probabilities that are no numbers, for example
            utils.warn(str(error))
            message = str(error).replace(str(self.model.path), self.model.path.name)  # clients need no folders
            raise HTTPException(500, message) from error

    def _read(self, content: bytes, name: str) -> Tensor:
        try:
            return self.model.prepare(decode_bytes(content, name))
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    async def draw(self, content: bytes, row: NDArray[np.float32], labels: Sequence[Label]) -> str:
        """The image file `content` above its `labels`, as a JPEG in base64; `row` (C,) are its probabilities."""
        record = Record(
            path="",
            probabilities=row,
            labels=[label.index for label in labels],
            names=[label.name for label in labels],
            classes=self.model.classes,
            picture=content,
        )
        work = await asyncio.to_thread(measure_image, content, "image", self.max_pixels)
        return await self.readers.run(work, partial(encode_picture, record))

    async def map(self, content: bytes, name: str, label: int) -> bytes:
        """A JPEG of the image file `content`, called `name`, under the colours of where the model sees a class.

        Raises HTTPException if there are no maps, if the queue is full, or if the file cannot be read as an image.
        """
        if self.maps.problem:
            raise HTTPException(409, self.explain_maps())
        require_room(self.queue, 1)
        with self.queue.hold(1):
            work = await asyncio.to_thread(measure_image, content, name, self.max_pixels)
            image, photograph = await self.readers.run(work, partial(self._read_twice, content, name))
            values = await self.queue.run_alone(partial(self.maps.compute, image, [label]))
            if values is None:
                raise HTTPException(409, self.explain_maps())
            return await asyncio.to_thread(encode_map, self.maps, photograph, values[0])

    def explain_maps(self) -> str:
        """Why there are no maps, and what to set; "" where there are."""
        advice = NO_MAPS if self.maps.network is None else ""
        return f"{self.maps.problem} {advice}".strip()

    def _read_twice(self, content: bytes, name: str) -> tuple[Tensor, Image.Image]:
        """An image as the model sees it, and as the map shows it."""
        try:
            pixels = decode_bytes(content, name)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        photograph = Image.fromarray(pixels)
        photograph.thumbnail((MAP_SIDE, MAP_SIDE))
        return self.model.prepare(pixels), photograph

    def label(self, probabilities: NDArray[np.float32], thresholds: NDArray[np.float32]) -> list[list[Label]]:
        """The labels of each row of `probabilities` (B, C), the most probable first."""
        chosen = metrics.predict(probabilities, thresholds, self.model.min_labels, self.model.max_labels)
        limits = thresholds.tolist()
        return [
            self._make_labels(np.flatnonzero(is_label).tolist(), row, limits)
            for row, is_label in zip(probabilities.tolist(), chosen, strict=True)
        ]

    def abstain(self, probabilities: NDArray[np.float32]) -> list[bool] | list[None]:
        """Whether the model leaves an image to a person, for each row (C,); None: it never does."""
        if self.model.abstention is None:
            return [None] * len(probabilities)
        return self.model.abstain(probabilities)

    def _make_labels(self, indices: list[int], row: list[float], thresholds: list[float]) -> list[Label]:
        """The classes `indices` of one image, with their values in `row` (C,) and `thresholds` (C,)."""
        return [
            Label(index=index, name=self.model.classes[index], probability=row[index], threshold=thresholds[index])
            for index in sorted(indices, key=lambda index: -row[index])
        ]


def make_app(
    service: Service,
    max_bytes: int,
    *,
    token: str | None = None,
    log: RequestLog | None = None,
    limits: UploadLimits | None = None,
) -> FastAPI:
    """Make the application around `service`. It takes image files of up to `max_bytes` bytes.

    With a `token` only those who send it are answered, see server/access.py. `limits` of bodies are derived from
    `max_bytes` if they are not given. The application's `state.monitor` has what /metrics says.
    """
    model, queue = service.model, service.queue
    limits = limits or derive_limits(max_bytes, len(model.classes), queue.size)
    page = pages.render("serving_page.html", novel=NOVEL)
    # the check itself is TokenGuard's; this one lets /docs ask for a token
    asks_for_token = [Depends(HTTPBearer(auto_error=False))] if token else []
    app = FastAPIOffline(
        redoc_url=None,
        title="Multi-label image classification",
        version=utils.VERSION,
        lifespan=service.run,
        dependencies=asks_for_token,
    )
    for kind, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)

    @app.post(
        "/predict",
        openapi_extra={"requestBody": describe_body(FORM_CONTENT | JSON_CONTENT)},
        responses=ERRORS,
        response_model_exclude_none=True,
    )
    async def predict(request: Request) -> Predictions | PaddleXAnswer:
        """Labels of one or several image files. JSON is answered as at PaddleX's path."""
        kind = read_type(request.headers)
        if kind == "application/json":
            return await classify(request)
        if kind != "multipart/form-data":
            raise HTTPException(415, f"send files as multipart/form-data, or application/json, not {kind or 'nothing'}")
        body = await read_body(request)
        form = await asyncio.to_thread(parse_form, request.headers["content-type"], body, queue.size)
        del body
        thresholds = model.thresholds if form.threshold is None else np.full_like(model.thresholds, form.threshold)
        answers = await service.compute(form.contents, form.names)
        monitor.images.inc(len(form.names))
        probabilities = np.stack([answer.probabilities for answer in answers])
        labels, abstains = service.label(probabilities, thresholds), service.abstain(probabilities)
        rows = zip(form.names, labels, answers, abstains, strict=True)
        return Predictions(
            predictions=[
                Prediction(
                    file=name,
                    labels=labels,
                    probabilities=answer.probabilities.tolist(),
                    novelty=answer.novelty,
                    abstains=is_left,
                )
                for name, labels, answer, is_left in rows
            ]
        )

    @app.post(
        PADDLEX_PATH,
        openapi_extra={"requestBody": describe_body(JSON_CONTENT)},
        responses=ERRORS,
        response_model_exclude_none=True,
    )
    async def classify(request: Request) -> PaddleXAnswer:
        """Labels of one image, and the picture with them, as PaddleX's multi-label classification service answers."""
        kind = read_type(request.headers)
        if kind != "application/json":
            raise HTTPException(415, f"send application/json, not {kind or 'nothing'}")
        body = await read_body(request)
        asked = await asyncio.to_thread(parse_json, body, model.thresholds, limits.form_bytes)
        del body
        (answer,) = await service.compute([asked.content], ["image"])
        labels = service.label(answer.probabilities[None], asked.thresholds)[0][: asked.most_labels]
        monitor.images.inc()
        categories = [Category(id=label.index, name=label.name, score=label.probability) for label in labels]
        picture = await service.draw(asked.content, answer.probabilities, labels) if asked.visualize else None
        abstains = service.abstain(answer.probabilities[None])[0]
        result = PaddleXResult(categories=categories, image=picture, abstains=abstains)
        return PaddleXAnswer(logId=str(uuid.uuid4()), result=result)

    @app.post(
        "/map",
        openapi_extra={"requestBody": describe_body(MAP_CONTENT)},
        responses=MAP_ANSWERS | ERRORS,
        response_class=Response,
    )
    async def show_map(request: Request) -> Response:
        """Where the model sees a class in an image: the picture, with bright places where they speak for the class.

        Each map is scaled to its own largest value; where no place speaks for the class, the picture is dark all over.
        """
        kind = read_type(request.headers)
        if kind != "multipart/form-data":
            raise HTTPException(415, f"send a file and a label as multipart/form-data, not {kind or 'nothing'}")
        body = await read_body(request)
        asked = await asyncio.to_thread(parse_map_form, request.headers["content-type"], body, model.classes)
        del body
        return Response(await service.map(asked.content, asked.name, asked.label), media_type=JPEG)

    @app.get("/labels")
    async def labels() -> Labels:
        """The classes in the model's order, with the thresholds from which on they are labels."""
        return Labels(
            classes=[
                ServedClass(index=index, name=name, threshold=threshold)
                for index, (name, threshold) in enumerate(zip(model.classes, model.thresholds.tolist(), strict=True))
            ],
            threshold=float(np.median(model.thresholds)),  # of calibrated ones if there is a calibration
            min_labels=model.min_labels,
            max_labels=model.max_labels,
        )

    @app.get("/health")
    async def health() -> Health:
        """The model, and how busy the server is."""
        return Health(
            logId=str(uuid.uuid4()),
            model=model.metadata["model_name"],
            file=Path(model.path).name,
            sha256=service.sha256,
            trained=model.metadata.get("saved"),
            version=utils.VERSION,
            engine=service.engine,
            uptime_seconds=time.monotonic() - service.start,
            novelty=model.compares,
            maps=not service.maps.problem,
            queue_length=queue.held,
        )

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(monitor.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    monitor = app.state.monitor = Monitor({route.path for route in app.routes if isinstance(route, Route)}, log)
    monitor.watch("queued_images", "accepted, and not answered yet", lambda: queue.held)
    memory = BodyMemory()
    monitor.watch("body_bytes", "of requests in memory", lambda: memory.held_bytes)
    app.add_middleware(UploadGuard, queue=queue, limits=limits, memory=memory)  # the last that is added comes first
    if token:
        app.add_middleware(TokenGuard, token=token)
    app.add_middleware(RequestWatch, monitor=monitor)
    return app


def describe_body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def encode_picture(record: Record) -> str:
    """The picture of a record above its labels, as a JPEG in base64."""
    buffer = io.BytesIO()
    record.draw(MAX_PICTURE_SIDE).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def encode_map(maps: MapMaker, photograph: Image.Image, values: Tensor) -> bytes:
    """A JPEG of the photograph under the colours of a map (h, w)."""
    buffer = io.BytesIO()
    maps.draw(photograph, values).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


async def read_body(request: Request) -> bytes:
    """The body of a request. Unlike `request.body()` it does not stay in memory until the answer."""
    return b"".join([chunk async for chunk in request.stream()])


def measure_images(contents: Sequence[bytes], names: Sequence[str], max_pixels: int) -> list[int]:
    """The work of decoding each image: pixels, times how often they are gone over. Nothing is decoded yet.

    Raises HTTPException if there are images that cannot be read, or have more than `max_pixels`.
    """
    works, errors = [], []
    for content, name in zip(contents, names, strict=True):
        try:
            works.append(measure_image(content, name, max_pixels))
        except HTTPException as error:
            errors.append(error)
    if errors:
        raise join_errors(errors)
    return works


def measure_image(content: bytes, name: str, max_pixels: int) -> int:
    """The work of decoding one image, as its header has it."""
    try:
        with open_image(content) as image:
            width, height = image.size
            if image.format == "TIFF":  # a tile is unpacked as a whole, also one that is larger than the image
                tags = image.tag_v2  # type: ignore[attr-defined]
                width, height = max(width, tags.get(TILE_WIDTH, 0)), max(height, tags.get(TILE_LENGTH, 0))
            num_scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    except DECODER_ERRORS as error:
        status, reason = 422, str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            status = 413
        elif isinstance(error, UnidentifiedImageError):
            status, reason = 415, tell_content(content)
        raise HTTPException(status, f"cannot read image {name}: {reason}") from error
    if width * height > max_pixels:
        most = f"{max_pixels / 1e6:g} million"
        raise HTTPException(413, f"image {name} has {width} x {height} pixels, which is more than {most}")
    if num_scans > MAX_SCANS:
        raise HTTPException(413, f"image {name} has {num_scans} scans, which is more than {MAX_SCANS}")
    return width * height * max(1, num_scans // SCANS_OF_A_PASS)
