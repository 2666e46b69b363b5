"""Webhooks to compare to, under our server and its configuration: one that does nothing, one that only answers."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from app.admission.injection import Sidecar, inject
from sidecar.protocol import Mode
from tests.harness.webhook import Webhook, running_webhook

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Review = dict[str, Any]
SIDECAR = Sidecar(
    image="registry.example/at-least-semaphore-pod-hook:1",
    mode=Mode.NATIVE,
    redis_addresses="redis-0:6379,redis-1:6379,redis-2:6379",
    redis_username="sidecar",
    redis_password="sidecar-password",
    variant="",
    requests={"cpu": "5m", "memory": "16Mi"},
    limits={"cpu": "250m", "memory": "64Mi"},
    secret=b"hook-password",
)


def nothing(_: Review) -> dict[str, str]:
    """No change."""
    return {}


def a_patch(review: Review) -> dict[str, str]:
    """What an admitted pod gets, without anything that would have to be asked or counted for it."""
    pod = review["request"]["object"]
    patch = inject(pod, SIDECAR, semaphore="batch/key", slot=0, token="0" * 32, expiration_seconds=60)
    return {"patchType": "JSONPatch", "patch": base64.b64encode(patch.encode()).decode()}


def allowing(change: Callable[[Review], dict[str, str]]) -> "WSGIApplication":
    """Allows whatever is asked, with this change. What asks without a body wants to know whether we are ready."""

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        asked = environ["wsgi.input"].read()
        answer = json.dumps(answer_to(json.loads(asked))).encode() if asked else b""
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        yield answer

    def answer_to(review: Review) -> Review:
        # An API server takes no answer without the uid that it sent.
        response = {"uid": review["request"]["uid"], "allowed": True, **change(review)}
        return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}

    return app


doing_nothing, only_answering = allowing(nothing), allowing(a_patch)


def running_nothing(**options: Any) -> AbstractContextManager[Webhook]:
    """As `running_webhook`, and needs no nodes."""
    return running_webhook({}, app=f"{__name__}:doing_nothing", **options)


def running_only_answering(**options: Any) -> AbstractContextManager[Webhook]:
    """The same, with the patch of an admission."""
    return running_webhook({}, app=f"{__name__}:only_answering", **options)
