"""By which a reconciler knows what the webhook wrote into a pod from what whoever made the pod did.

Pods may come to be, with a sidecar of our name, that the webhook is not asked about or leaves alone: mirror pods, or
those of namespaces that are left out. Such a one could name the token of another pod. To make a lease for it, under a
semaphore of its own, would bring the other one's slot to life again. So what a sidecar is told bears a seal, under a
secret that webhook and reconciler share.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable


def signed(secret: bytes, *told: str | int) -> str:
    """What only who knows the secret can make of these: 128 bits in hex, under HMAC-SHA256."""
    return hmac.new(secret, json.dumps(told).encode(), hashlib.sha256).hexdigest()[:32]


def seal_of(secret: bytes, *, semaphore: str, token: str, expiration_seconds: str) -> str:
    """The seal of what a sidecar is told."""
    # Four items, where a token is made of three: neither is ever the other.
    return signed(secret, "seal", semaphore, token, expiration_seconds)


def is_sealed(seal: str, secrets: Iterable[bytes], *, semaphore: str, token: str, expiration_seconds: str) -> bool:
    """Whether it was made under one of these secrets: of two while passwords are changed."""
    made = (
        seal_of(secret, semaphore=semaphore, token=token, expiration_seconds=expiration_seconds) for secret in secrets
    )
    # As bytes: a seal of somebody else may be any text.
    return any([hmac.compare_digest(each.encode(), seal.encode(errors="replace")) for each in made])
