"""The HTTP interface: predictions, state, metrics, the page, and a description of the interface."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException

from detect.errors import UserError
from detect.serve.answers import CONTENT_TYPES, CocoResult, Detections, Form, Model, Problem, State, body_of
from detect.serve.bodies import OPENAPI, read_image
from detect.serve.metrics import CONTENT_TYPE
from detect.serve.request_log import RequestLog
from detect.serve.service import Service, TooManyRequestsError
from detect.versions import __version__

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content security policy of the pages: they load nothing from elsewhere."""
PAGES = {
    "/": "page.html",
    "/docs": "docs.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/masks.js": "masks.js",
    "/docs.js": "docs.js",
}
"""Files of the folder `web` by address."""
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "no image in the body"},
    401: {"model": Problem, "description": "no key, or a wrong one"},
    413: {"model": Problem, "description": "the body is too large"},
    415: {"model": Problem, "description": "the body is not an image"},
    422: {"model": Problem, "description": "the image cannot be read, or an option is invalid"},
    503: {"model": Problem, "description": "too many requests at a time; try again after Retry-After seconds"},
    504: {"model": Problem, "description": "the time limit is exceeded"},
}


def build_application(service: Service, keys: Sequence[str] = ()) -> FastAPI:
    """Return the application of a service.

    Args:
        service: the service; it is closed when the application stops.
        keys: keys of which predictions and metrics need one, as `Authorization: Bearer KEY`; none if empty.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm_up)
        yield
        await asyncio.to_thread(service.close)

    application = FastAPI(
        title="detect",
        description="Detects objects in images.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    application.add_middleware(RequestLog, metrics=service.metrics)
    application.add_exception_handler(AnyHTTPException, _refuse)
    application.add_exception_handler(RequestValidationError, _refuse_option)
    application.add_exception_handler(Exception, _fail)
    guarded = [Depends(partial(_check_key, keys))] if keys else []
    _add_predictions(application, service, guarded)
    _add_state(application, service, guarded, bool(keys))
    for address, name in PAGES.items():
        application.add_api_route(address, partial(_page, name), include_in_schema=False)
    return application


def _add_predictions(application: FastAPI, service: Service, guarded: Sequence[Any]) -> None:
    """Add `/predict`."""

    @application.post(
        "/predict",
        response_model=Detections | list[CocoResult],
        responses={200: {"content": {"image/jpeg": {}}, "description": "the detections"}, **_REFUSALS},
        dependencies=guarded,
        openapi_extra=OPENAPI,
        summary="Detect objects in an image",
    )
    async def predict(
        request: Request,
        score: Annotated[float | None, Query(ge=0, le=1, description="score threshold")] = None,
        classes: Annotated[list[str], Query(description="names of the classes to keep; all by default")] = [],  # noqa: B006
        form: Annotated[
            Form, Query(alias="format", description="JSON, COCO results, or the image with boxes")
        ] = "detect",
        image_id: Annotated[int, Query(description="id of the image in COCO results")] = 0,
    ) -> Response:
        try:
            with service.admitted():
                async with asyncio.timeout(service.limits.seconds):
                    data = await read_image(request, service.limits.bytes)
                    answer = partial(body_of, form=form, image_id=image_id)
                    body = await service.detect(data, score, classes, answer)
        except TooManyRequestsError:
            raise HTTPException(503, "too many requests at a time; try again later", {"Retry-After": "1"}) from None
        except TimeoutError:
            raise HTTPException(504, f"not answered within {service.limits.seconds:g} seconds") from None
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        return Response(body, media_type=CONTENT_TYPES[form], headers={"Cache-Control": "no-store"})


def _add_state(application: FastAPI, service: Service, guarded: Sequence[Any], needs_key: bool) -> None:
    """Add `/health`, `/ready`, `/model` and `/metrics`."""

    @application.get("/health", summary="Tell that the process runs", response_description="it runs")
    async def health() -> State:
        return State(status="ok")

    @application.get(
        "/ready",
        summary="Tell whether images are taken",
        response_description="they are",
        responses={503: {"model": State, "description": "the service stops"}},
    )
    async def ready(response: Response) -> State:
        if service.ready:
            return State(status="ready")
        response.status_code = 503
        return State(status="stopping")

    @application.get("/model", summary="Describe the detector and the limits", response_description="both")
    async def model() -> Model:
        detector, limits = service.detector, service.limits
        return Model(
            classes=detector.classes,
            score=detector.score,
            min_score=detector.min_score,
            masks=detector.predicts_masks,
            max_bytes=limits.bytes,
            max_pixels=limits.pixels,
            needs_key=needs_key,
        )

    @application.get(
        "/metrics",
        dependencies=guarded,
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "the metrics"}},
        summary="Metrics in the format of Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


_bearer = HTTPBearer(auto_error=False)


def _check_key(
    keys: Sequence[str], credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    given = "" if credentials is None else credentials.credentials
    # Every key is compared, in constant time, so that the time tells nothing.
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    if not any(matches):
        raise HTTPException(401, "give a key as `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"})


async def _page(name: str) -> Response:
    content = (resources.files("detect.serve") / "web" / name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    return _problem(error.status_code, error.detail, error.headers)


async def _refuse_option(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{first['loc'][-1]}: {first['msg']}")


async def _fail(_: Request, error: Exception) -> Response:
    return _problem(500, "internal error; the server's log has its cause")


def _problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    # The connection is closed, or the rest of a body that was not read would still be received.
    return JSONResponse({"error": text}, status, {"Connection": "close", **(headers or {})})
