"""The errors that clients get: each has PaddleX's form, and one line that can be printed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

MAX_MESSAGE = 1000  # characters; a client's own words may be in it


class Error(BaseModel):
    logId: str
    errorCode: int
    errorMsg: str


def make_error(status: int, message: str) -> Error:
    """An error in PaddleX's form. What cannot be printed or is no UTF-8 is escaped, and a long message is cut."""
    line = " ".join(message[: 2 * MAX_MESSAGE].split())
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    line = line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"
    return Error(logId=str(uuid.uuid4()), errorCode=status, errorMsg=line)


def answer_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(make_error(status, message).model_dump(), status, headers)


def join_errors(errors: Sequence[BaseException]) -> BaseException:
    """One error for a request, made from the errors of its images.

    It is the first that is no HTTPException, if there is one; else an HTTPException that quotes the first three.
    """
    refusals = []
    for error in errors:
        if not isinstance(error, HTTPException):
            return error
        refusals.append(error)
    messages = list(dict.fromkeys(error.detail for error in refusals))  # a fault of the model is one for all
    message = "; ".join(messages[:3])
    if len(messages) > 3:
        message += f"; and {len(messages) - 3} more"
    return HTTPException(refusals[0].status_code, message)


async def answer_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return answer_error(error.status_code, error.detail, error.headers)


async def answer_nobody(_: Request, __: Exception) -> JSONResponse:
    return answer_error(400, "the client left while its request was read")


async def answer_failure(_: Request, error: Exception) -> JSONResponse:
    # the traceback is in the server's log only
    return answer_error(500, f"the server failed over this request: {type(error).__name__}")


ERROR_HANDLERS = {
    AnyHTTPException: answer_http_error,
    ClientDisconnect: answer_nobody,
    Exception: answer_failure,
}
