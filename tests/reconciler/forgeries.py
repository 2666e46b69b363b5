"""Pods as somebody could make them where the webhook is not asked."""

from typing import Any

from app.admission.annotations import GROUP
from app.admission.seal import seal_of
from sidecar.protocol import Variable
from tests.harness.control_plane import Object
from tests.harness.nodes import SIDECAR_PASSWORD, SIDECAR_USER
from tests.harness.reconciler import GATE, SIDECAR, waiting_pod

HOLDER = {f"{GROUP}/holder": "true"}


def forged(name: str, semaphore: str, token: str, under: str = "a guess", **env: str) -> Object:
    """A pod as it would be stored if the webhook had let it wait for that semaphore, sealed under this password."""
    pod = waiting_pod(name)
    values = {
        Variable.SEMAPHORE: semaphore,
        Variable.TOKEN: token,
        Variable.EXPIRATION: "60",
        Variable.REDIS_USERNAME: SIDECAR_USER,
        Variable.REDIS_PASSWORD: SIDECAR_PASSWORD,
        **env,
    }
    sealed = {"semaphore": values[Variable.SEMAPHORE], "token": values[Variable.TOKEN]}
    values[Variable.SEAL] = seal_of(under.encode(), **sealed, expiration_seconds=values[Variable.EXPIRATION])
    container: dict[str, Any] = {
        "name": SIDECAR,
        "image": "registry.example/forged:1",
        "command": ["python", "-m", "sidecar"],
        "restartPolicy": "Always",
        "env": [{"name": name, "value": value} for name, value in values.items()],
    }
    pod["metadata"]["labels"] = dict(HOLDER)
    pod["spec"] |= {"initContainers": [container], "schedulingGates": [{"name": GATE}]}
    return pod
