"""Whether an object is what its API accepts: built-in kinds by kubernetes-validate, others by our CRDs.

Stricter than an API server, which drops fields that it does not know: here they are errors.
"""

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]

from tests.manifests.objects import SCHEMAS, Object, load

CUSTOM = {
    (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): version["schema"]["openAPIV3Schema"]
    for crd in load(*SCHEMAS)
    for version in crd["spec"]["versions"]
}


class InvalidError(Exception):
    """The object is not what its API accepts; the message says where and why."""


def validate(found: Object) -> None:
    """Raises InvalidError."""
    schema = CUSTOM.get((found["apiVersion"], found["kind"]))
    try:
        if schema is None:
            kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
        else:
            jsonschema.validate(found, closed(schema))
    except jsonschema.ValidationError as error:
        raise InvalidError(f"{error.json_path}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise InvalidError(error.message) from error


def closed(schema: Any) -> Any:
    """The same schema, in which whoever lists its properties has no others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    # `properties` may itself be the name of a property, whose schema is then a mapping without a type.
    if schema.get("type") == "object" and "properties" in schema:
        inner.setdefault("additionalProperties", False)
    return inner
