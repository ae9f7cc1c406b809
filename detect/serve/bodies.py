"""The image in the body of a request, read within a bound."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

FORM_TYPE = "multipart/form-data"
CURL_TYPE = "application/x-www-form-urlencoded"
"""Type of any file that `curl --data-binary` sends."""
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "an image file, as the body itself or as the file of a form",
        "content": {
            FORM_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""Description of the body for OpenAPI."""
_REMEDY = "send an image file as the body, or as the file `image` of multipart/form-data"


async def read_image(request: Request, limit: int) -> bytes:
    """Return the bytes of the image file in a request, which is the body or the only file of a form.

    Raises:
        HTTPException: the body is longer than `limit` (413), of another type (415), or has no image (400).
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        if "expect" not in request.headers:  # such a client sends the body only if it is asked to
            await _drain(request.receive, 2 * limit)
        raise _too_large(limit)
    try:
        data = await _read(Request(request.scope, _bounded(request.receive, limit)), limit)
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    if not data:
        raise HTTPException(400, f"the body is empty; {_REMEDY}")
    return data


async def _read(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM_TYPE:
        return await _only_file(request, limit)
    if kind in ("", "application/octet-stream", CURL_TYPE) or kind.startswith("image/"):
        return await request.body()
    raise HTTPException(415, f"the body is {kind}; {_REMEDY}")


async def _only_file(request: Request, limit: int) -> bytes:
    async with request.form(max_files=1, max_fields=10, max_part_size=limit) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    raise HTTPException(400, f"the form has no file; {_REMEDY}")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a function that receives a body, also one of unknown length, and raises once it is longer than `limit`."""
    received = 0

    async def receive_within_limit() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            if message.get("more_body"):
                await _drain(receive, limit)
            raise _too_large(limit)
        return message

    return receive_within_limit


async def _drain(receive: Receive, most: int) -> None:
    """Receive the rest of a body up to a number of bytes: clients that still send do not see an answer."""
    more = True
    while more and most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        more = message.get("more_body", False)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body has more than {limit} bytes; send a smaller image")
