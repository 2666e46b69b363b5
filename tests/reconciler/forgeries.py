"""Pods as somebody could make them where the webhook is not asked."""

from typing import Any

from app.admission.annotations import GROUP
from sidecar.protocol import Variable
from tests.harness.control_plane import Object
from tests.harness.nodes import SIDECAR_PASSWORD, SIDECAR_USER
from tests.harness.reconciler import GATE, SIDECAR, waiting_pod

HOLDER = {f"{GROUP}/holder": "true"}


def forged(name: str, semaphore: str, token: str, **env: str) -> Object:
    """A pod as it would be stored if the webhook had let it wait for that semaphore."""
    pod = waiting_pod(name)
    values = {
        Variable.SEMAPHORE: semaphore,
        Variable.TOKEN: token,
        Variable.EXPIRATION: "60",
        Variable.REDIS_USERNAME: SIDECAR_USER,
        Variable.REDIS_PASSWORD: SIDECAR_PASSWORD,
        **env,
    }
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
