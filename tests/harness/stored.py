"""Pods as the API server tells of them, for what reads them without one."""

from typing import Any

from app.admission.annotations import GROUP
from sidecar.protocol import Variable

CREATED = "2026-11-24T10:00:00Z"
CREATED_AT = 1795514400
GATE = {"name": f"{GROUP}/slot"}
OURS = "at-least-semaphore-sidecar"
TOKEN = "0123456789abcdef" * 2


def stored_pod(
    name: str = "worker",
    *,
    created: str = CREATED,
    gates: tuple[dict[str, str], ...] = (GATE,),
    semaphore: str = "batch/reports-db",
    token: str = TOKEN,
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **asked: str,
) -> dict[str, Any]:
    """A pod as the API server tells of it; `asked` are annotations, with _ for -."""
    asks = {"at-least-semaphore-pod": "true", "key": "reports-db", "length": "3", "expiration": "60"}
    asks |= {"when-full": "wait"} | {key.replace("_", "-"): value for key, value in asked.items()}
    env = [{"name": Variable.TOKEN, "value": token}, {"name": Variable.SEMAPHORE, "value": semaphore}]
    return {
        "metadata": {
            "namespace": "batch",
            "name": name,
            "uid": f"uid-of-{name}",
            "creationTimestamp": created,
            "annotations": {f"{GROUP}/{key}": value for key, value in asks.items()},
            **(metadata or {}),
        },
        "spec": {
            "schedulingGates": list(gates),
            "initContainers": [{"name": "of-a-mesh"}, {"name": OURS, "env": env}],
            "containers": [{"name": "app"}],
        },
        "status": status or {"phase": "Pending"},
    }
