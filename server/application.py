"""The HTTP application of serving.py: FastAPI, around a model and its queue.

    POST /predict                          image files as multipart/form-data, or JSON as for the next path
    POST /multilabel-image-classification  PaddleX's format: {"image": base64} -> {"result": {"categories": ...}}
    GET  /                                 a page on which one can try the model
    GET  /labels                           the classes and their thresholds
    GET  /health                           the model, and how busy the server is
    GET  /docs                             the description of all this in OpenAPI

If one image of a request cannot be read, the whole request is refused, and the message names the image. Every error has
PaddleX's form: {"logId": ..., "errorCode": the HTTP status, "errorMsg": one line}.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

import metrics
from dataset.decoding import DECODER_ERRORS, IMAGE_FORMATS, decode_bytes
from evaluation import pages
from predictor import Predictor
from server.request_queue import BatchQueue
from utils import InputError

PADDLEX_PATH = "/multilabel-image-classification"
UPLOAD_SECONDS = 60.0  # a request has to arrive within this time, so that a slow one cannot keep the server from ending
RETRY_SECONDS = 1  # a client that found the queue full may try again after this time

Probability = Annotated[float, Field(ge=0, le=1)]
Thresholds = Probability | list[Probability] | dict[Literal["default"] | int, Probability] | None
Model = TypeVar("Model", bound=BaseModel)


class Label(BaseModel):
    index: int
    name: str
    probability: float
    threshold: float


class FormFields(BaseModel):
    threshold: Probability


class Prediction(BaseModel):
    file: str
    labels: list[Label] = Field(description="the most probable first")
    probabilities: list[float] = Field(description="of every class, in the order of /labels")


class Predictions(BaseModel):
    predictions: list[Prediction] = Field(description="one for each file, in the order in which they were sent")


class PaddleXRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")  # otherwise a misspelt threshold would be ignored

    image: str = Field(description="the image file in base64; addresses are not fetched")
    threshold: Thresholds = Field(
        None,
        description="a number for all classes, a list with one for each class, or an object of class index -> number "
        "with a `default`; without it the model's thresholds are used",
    )


class Category(BaseModel):
    id: int
    name: str
    score: float


class PaddleXResult(BaseModel):
    categories: list[Category] = Field(description="the most probable first")


class PaddleXAnswer(BaseModel):
    logId: str
    errorCode: Literal[0] = 0
    errorMsg: Literal["Success"] = "Success"
    result: PaddleXResult


class Error(BaseModel):
    logId: str
    errorCode: int
    errorMsg: str


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
    model: str
    file: str
    engine: str
    uptime_seconds: float
    queue_length: int = Field(description="images that were accepted and are not answered yet")


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "no image, an unknown field, or a body that is not what it says"},
    408: {"model": Error, "description": "the request took too long to arrive"},
    413: {"model": Error, "description": "the request has too many bytes, or an image too many pixels"},
    415: {"model": Error, "description": "neither files nor JSON, or not an image of a known kind"},
    422: {"model": Error, "description": "a damaged image, or a value that is not allowed"},
    503: {"model": Error, "description": "the queue is full: try again after the seconds in Retry-After"},
}
PREDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
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
            },
            "application/json": {"schema": PaddleXRequest.model_json_schema()},
        },
    }
}


class Service:
    """A model, its queue, and the threads that decode images.

    `engine` is the name of the model's engine. An image may have up to `max_pixels` pixels.
    """

    def __init__(self, model: Predictor, engine: str, queue: BatchQueue, max_pixels: int) -> None:
        self.model, self.engine, self.queue, self.max_pixels = model, engine, queue, max_pixels
        self.readers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="reader")
        self.start = time.monotonic()

    @asynccontextmanager
    async def run(self, _: FastAPI) -> AsyncIterator[None]:
        """Runs the queue from the application's start to its end, when all requests have been answered."""
        running = asyncio.create_task(self.queue.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self.readers.shutdown()

    async def compute(self, contents: Sequence[bytes], names: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities (B, C) of image files: their contents, and their names for messages.

        Raises HTTPException if the queue is full, or if a file cannot be read as an image.
        """
        require_room(self.queue, len(contents))
        with self.queue.hold(len(contents)):
            results = await asyncio.gather(*map(self._compute_image, contents, names), return_exceptions=True)
        rows = [result for result in results if not isinstance(result, BaseException)]
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise join_errors(errors)
        return np.stack(rows)

    async def _compute_image(self, content: bytes, name: str) -> NDArray[np.float32]:
        image = await asyncio.get_running_loop().run_in_executor(self.readers, self._read, content, name)
        return await self.queue.compute(image)

    def _read(self, content: bytes, name: str) -> Tensor:
        require_readable(content, name, self.max_pixels)
        try:
            return self.model.prepare(decode_bytes(content, name))
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    def choose_thresholds(self, asked: Thresholds) -> NDArray[np.float32]:
        """The thresholds (C,) for a request: those it asked for, and the model's for classes it does not name.

        Raises HTTPException for a class that does not exist, and for a list of another length than C.
        """
        thresholds, count = self.model.thresholds.copy(), len(self.model.classes)
        if isinstance(asked, dict):
            if "default" in asked:
                thresholds[:] = asked["default"]
            for index, threshold in asked.items():
                if isinstance(index, int):
                    if not 0 <= index < count:
                        raise HTTPException(422, f"threshold: there is no class {index}; they are 0 to {count - 1}")
                    thresholds[index] = threshold
        elif isinstance(asked, list) and len(asked) != count:
            raise HTTPException(422, f"threshold: {len(asked)} numbers for {count} classes")
        elif asked is not None:
            thresholds[:] = asked
        return thresholds

    def label(self, probabilities: NDArray[np.float32], thresholds: NDArray[np.float32]) -> list[list[Label]]:
        """The labels of each row of `probabilities` (B, C), the most probable first."""
        chosen = metrics.predict(probabilities, thresholds, self.model.min_labels, self.model.max_labels)
        limits = thresholds.tolist()
        return [
            self._make_labels(np.flatnonzero(is_label).tolist(), row, limits)
            for row, is_label in zip(probabilities.tolist(), chosen, strict=True)
        ]

    def _make_labels(self, indices: list[int], row: list[float], thresholds: list[float]) -> list[Label]:
        """The classes `indices` of one image, with their values in `row` (C,) and `thresholds` (C,)."""
        return [
            Label(index=index, name=self.model.classes[index], probability=row[index], threshold=thresholds[index])
            for index in sorted(indices, key=lambda index: -row[index])
        ]


def make_app(service: Service, max_bytes: int) -> FastAPI:
    """Make the application around `service`. It takes requests of up to `max_bytes` bytes."""
    model, queue = service.model, service.queue
    page = pages.render("serving_page.html")
    app = FastAPIOffline(redoc_url=None, title="Multi-label image classification", lifespan=service.run)
    app.add_middleware(UploadGuard, queue=queue, max_bytes=max_bytes)
    for kind, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)

    @app.post("/predict", openapi_extra=PREDICT_BODY, responses=ERRORS)
    async def predict(request: Request) -> Predictions | PaddleXAnswer:
        """Labels of one or several image files. JSON is answered as at PaddleX's path."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            body = await request.body()
            return await classify(validate(lambda: PaddleXRequest.model_validate_json(body)))
        if kind != "multipart/form-data":
            raise HTTPException(415, f"send files as multipart/form-data, or application/json, not {kind or 'nothing'}")
        async with request.form(max_files=queue.size) as form:
            uploads, threshold = read_form(form)
            thresholds = service.choose_thresholds(threshold)
            names = [upload.filename or "" for upload in uploads]
            probabilities = await service.compute([await upload.read() for upload in uploads], names)
        rows = zip(names, service.label(probabilities, thresholds), probabilities.tolist(), strict=True)
        return Predictions(
            predictions=[Prediction(file=name, labels=labels, probabilities=row) for name, labels, row in rows]
        )

    @app.post(PADDLEX_PATH, responses=ERRORS)
    async def classify(body: PaddleXRequest) -> PaddleXAnswer:
        """Labels of one image, in the form of PaddleX's multi-label classification service, without its picture."""
        thresholds = service.choose_thresholds(body.threshold)
        content = await asyncio.to_thread(decode_base64, body.image)  # in a thread: 20 MB would delay other requests
        (labels,) = service.label(await service.compute([content], ["image"]), thresholds)
        categories = [Category(id=label.index, name=label.name, score=label.probability) for label in labels]
        return PaddleXAnswer(logId=str(uuid.uuid4()), result=PaddleXResult(categories=categories))

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
            model=model.metadata["model_name"],
            file=Path(model.path).name,
            engine=service.engine,
            uptime_seconds=time.monotonic() - service.start,
            queue_length=queue.held,
        )

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    return app


class UploadGuard:
    """ASGI middleware that refuses a request while its body is read, once it is too large or too slow.

    If the queue is full, the body is not read at all. The HTTPException is raised in the application, where it reads.
    """

    def __init__(self, app: ASGIApp, queue: BatchQueue, max_bytes: int) -> None:
        self.app, self.queue, self.max_bytes = app, queue, max_bytes
        self.num_reading = 0  # requests whose body is being read or in memory, and which are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = int(Headers(scope=scope).get("content-length", 0))
        deadline = asyncio.get_running_loop().time() + UPLOAD_SECONDS
        num_bytes, is_complete, is_reading = 0, False, False

        async def read() -> Message:
            nonlocal num_bytes, is_complete, is_reading
            if is_complete:
                return await receive()  # the message that the client has left
            if not is_reading:
                require_room(self.queue, 1 + max(0, self.num_reading - self.queue.held))
                is_reading = True
                self.num_reading += 1
            try:
                if declared <= self.max_bytes:
                    async with asyncio.timeout_at(deadline):
                        message = await receive()
                    num_bytes += len(message.get("body", b""))
                    is_complete = not message.get("more_body", False)
                    if num_bytes <= self.max_bytes:
                        return message
            except TimeoutError:
                raise HTTPException(408, f"the request did not arrive within {UPLOAD_SECONDS:g} seconds") from None
            raise HTTPException(413, f"the request is larger than {self.max_bytes / 2**20:g} MB")

        try:
            await self.app(scope, read, send)
        finally:
            if is_reading:
                self.num_reading -= 1


def require_room(queue: BatchQueue, num_images: int) -> None:
    """Raise HTTPException 503 if the queue does not take `num_images` more."""
    if not queue.has_room(num_images):
        message = f"{queue.held} of at most {queue.size} images are waiting: try again in {RETRY_SECONDS} s"
        raise HTTPException(503, message, {"Retry-After": str(RETRY_SECONDS)})


def require_readable(content: bytes, name: str, max_pixels: int) -> None:
    """Raise HTTPException if an image's header is not of a known format, or announces more than `max_pixels`."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except DECODER_ERRORS as error:
        status, reason = 422, str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            status = 413
        elif not content:
            status, reason = 415, "the file is empty"
        elif isinstance(error, UnidentifiedImageError):
            status, reason = 415, f"it is no {', '.join(IMAGE_FORMATS)} file"
        raise HTTPException(status, f"cannot read image {name}: {reason}") from error
    if width * height > max_pixels:
        most = f"{max_pixels / 1e6:g} million"
        raise HTTPException(413, f"image {name} has {width} x {height} pixels, which is more than {most}")


def read_form(form: FormData) -> tuple[list[UploadFile], float | None]:
    """The files of a form, in fields of any name, and its threshold, or None if it has none.

    Raises HTTPException for a form without files, for an unknown field, and for a threshold that is not in 0-1.
    """
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    fields = {name: value for name, value in form.multi_items() if not isinstance(value, UploadFile)}
    unknown = fields.keys() - {"threshold"}
    if unknown:
        raise HTTPException(400, f"unknown field {min(unknown)!r}: send files, and a threshold if you like")
    if not uploads:
        raise HTTPException(400, "there is no file: send one or several as multipart/form-data, in the field files")
    if "threshold" not in fields:
        return uploads, None
    return uploads, validate(lambda: FormFields.model_validate(fields)).threshold


def decode_base64(text: str) -> bytes:
    """Decode base64, in which there may be white space. Raises HTTPException if it is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # also of text that is not ASCII
        raise HTTPException(422, f"image: not in base64 ({error}); addresses are not fetched") from error


def validate(make: Callable[[], Model]) -> Model:
    """Call `make`, which checks a client's values. Raises HTTPException for the first value that is wrong."""
    try:
        return make()
    except ValidationError as error:
        raise refuse(error.errors()) from error


def refuse(errors: Sequence[Any]) -> HTTPException:
    """Make an HTTPException of the first of pydantic's errors: the field, and what is wrong with it."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return HTTPException(400, f"the body is not JSON: {first['ctx']['error']}")
    fields = [name for name in first["loc"] if isinstance(name, str) and name != "body"]
    return HTTPException(422, ": ".join([*fields[:1], first["msg"]]))


def join_errors(errors: Sequence[BaseException]) -> BaseException:
    """One error for a request, made from the errors of its images.

    It is the first that is no HTTPException, if there is one; else an HTTPException that quotes the first three.
    """
    refusals = []
    for error in errors:
        if not isinstance(error, HTTPException):
            return error
        refusals.append(error)
    message = "; ".join(error.detail for error in refusals[:3])
    if len(refusals) > 3:
        message += f"; and {len(refusals) - 3} more"
    return HTTPException(refusals[0].status_code, message)


# ---- answers to requests that failed ----


async def answer_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return answer_error(error.status_code, error.detail, error.headers)


async def answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await answer_http_error(request, refuse(error.errors()))


async def answer_nobody(_: Request, __: Exception) -> JSONResponse:
    return answer_error(400, "the client left while its request was read")


async def answer_failure(_: Request, error: Exception) -> JSONResponse:
    # the traceback is in the server's log only
    return answer_error(500, f"the server failed over this request: {type(error).__name__}")


def answer_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in PaddleX's form."""
    error = Error(logId=str(uuid.uuid4()), errorCode=status, errorMsg=" ".join(message.split()))
    return JSONResponse(error.model_dump(), status, headers)


ERROR_HANDLERS = {
    AnyHTTPException: answer_http_error,
    RequestValidationError: answer_validation_error,
    ClientDisconnect: answer_nobody,
    Exception: answer_failure,
}
