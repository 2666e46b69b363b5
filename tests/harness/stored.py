"""Pods as the API server tells of them, for what reads them without one."""

from typing import Any

from app.admission.annotations import GROUP
from app.admission.seal import seal_of
from sidecar.protocol import Variable

CREATED = "2026-11-24T10:00:00Z"
CREATED_AT = 1795514400
GATE = {"name": f"{GROUP}/slot"}
OURS = "at-least-semaphore-sidecar"
TOKEN = "0123456789abcdef" * 2
SECRET = b"known to webhook and reconciler"


def stored_pod(
    name: str = "worker",
    *,
    created: str = CREATED,
    gates: tuple[dict[str, str], ...] = (GATE,),
    semaphore: str = "batch/reports-db",
    token: str = TOKEN,
    seal: str | None = None,
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **asked: str,
) -> dict[str, Any]:
    """A pod as the API server tells of it, sealed under SECRET; `asked` are annotations, with _ for -."""
    asks = {"at-least-semaphore-pod": "true", "key": "reports-db", "length": "3", "expiration": "60"}
    asks |= {"when-full": "wait"} | {key.replace("_", "-"): value for key, value in asked.items()}
    told = {Variable.TOKEN: token, Variable.SEMAPHORE: semaphore, Variable.EXPIRATION: "60"}
    ours = seal_of(SECRET, semaphore=semaphore, token=token, expiration_seconds="60")
    told[Variable.SEAL] = ours if seal is None else seal
    env = [{"name": each, "value": value} for each, value in told.items()]
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
