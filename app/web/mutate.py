"""`POST /mutate`: an AdmissionReview in, its verdict out.

Knows HTTP and the time a request may take, not what is decided.
"""

import json
import logging
import re
import time
from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.wrappers import Response as WerkzeugResponse

from app.admission.holder import pod_name
from app.admission.review import Malformed, Reason, Review, Verdict, parse_review, respond
from app.server import LARGEST_BODY_BYTES

log = logging.getLogger(__name__)

# For the way back: an answer that the API server has stopped waiting for would hold a slot for nobody.
MARGIN_SECONDS = 0.3

# What gunicorn raises as a body of chunks is read that is none, or that ends too early.
BROKEN_CHUNKS = (NoMoreData, ParseException)
TROUBLES = (Reason.UNAVAILABLE, Reason.ADMITTED_WITHOUT_SLOT)

# A Go duration in the units that a timeout is given in (https://pkg.go.dev/time#ParseDuration).
_DURATION = re.compile(r"(?:(\d{1,4})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,7})ms)?")

Decide = Callable[[Review, float], Verdict]


def blueprint(decide: Decide, on_verdict: Callable[[Verdict, float], None], budget_seconds: float) -> Blueprint:
    """The route, with what decides (given a review and a deadline in monotonic seconds) and what is told of it.

    `on_verdict` is given the verdict and how many seconds it took.
    """
    routes = Blueprint("mutate", __name__)

    @routes.post("/mutate")
    def mutate() -> Response:
        arrived = time.monotonic()
        deadline = arrived + _time_allowed(request.args.get("timeout", ""), budget_seconds)
        review = parse_review(_json_body())
        verdict = decide(review, deadline)
        seconds = time.monotonic() - arrived
        _log(review, verdict, seconds)
        on_verdict(verdict, seconds)
        return jsonify(respond(review, verdict))

    routes.register_error_handler(Malformed, _bad_request)
    routes.register_error_handler(ConnectionError, _bad_request)
    # Of all routes, and where there is none: clients want JSON, not a page.
    routes.app_errorhandler(HTTPException)(_http_error)
    return routes


def _time_allowed(timeout: str, budget_seconds: float) -> float:
    """Our own budget in seconds, or what the API server says it waits (`?timeout=10s`) less a margin, if shorter."""
    found = _DURATION.fullmatch(timeout)
    if not found or not timeout:
        return budget_seconds
    minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return min(budget_seconds, minutes * 60 + seconds + milliseconds / 1000 - MARGIN_SECONDS)


def _json_body() -> object:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(f"Content-Type is {request.mimetype!r}, accepted is 'application/json'")
    body = _body()
    # Of a name that comes twice in an object the last one counts, and NaN is a number, as Python reads them. That
    # opens nothing: what the API server sends is its own encoding of what it has read, never a client's text.
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from error


def _body() -> bytes:
    try:
        body = request.get_data(cache=False)
    except BROKEN_CHUNKS as error:
        raise Malformed(f"the body cannot be read: {error}") from error
    # One that comes in chunks says nothing of its length, and Werkzeug stops at the limit without a word.
    if request.content_length is None and len(body) >= LARGEST_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def _log(review: Review, verdict: Verdict, seconds: float) -> None:
    """One line for each pod, its fields named as in the metrics.

    The review's uid is left out: together with the secret it makes the token.
    """
    if review.pod is None:
        return
    level = logging.WARNING if verdict.reason in TROUBLES else logging.INFO
    fields = {
        "namespace": review.namespace,
        "pod": pod_name(review.pod),
        "reason": verdict.reason.value,
        "allowed": verdict.allowed,
        "admission_duration_seconds": round(seconds, 4),
        **verdict.facts,
    }
    log.log(level, verdict.message or verdict.reason.value, extra=fields)


def _bad_request(error: Exception) -> tuple[Response, int]:
    log.warning("refused a request: %s", error)
    return jsonify(error=str(error)), 400


def _http_error(error: HTTPException) -> WerkzeugResponse:
    response = error.get_response()  # with the header `Allow`, where it has one
    response.data = jsonify(error=error.description).data
    response.content_type = "application/json"
    return response
