"""`explain`: what the webhook would decide about a pod, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from app import rules_of
from app.admission import injection
from app.admission.annotations import parse_slot_request
from app.admission.review import Malformed, Reason, Verdict, parse_review
from app.cli.desk import Desk, Form, Wrong, desk_options, open_desk, tell_unheard
from app.cli.foresight import caveats, foresee
from app.cli.output import printable, say, say_json
from app.cli.pods import Source, Unreadable, mistakes, sources_in
from app.decision import decide
from app.semaphore.semaphores import Semaphores

# Beside the reasons of a verdict.
MALFORMED = "malformed"
UNKNOWN = "unknown"
NOT_LOOKED_AT = (
    "Not looked at is whether the API server asks the webhook about these pods at all. It does not in kube-system, in "
    "the webhook's own namespace and, with the component opt-in, in namespaces without the label: there pods run "
    "without a slot."
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of one pod."""

    source: Source
    namespace: str
    allowed: bool | None  # None: cannot be told
    reason: str
    message: str
    notes: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.source.kind,
            "name": self.source.name,
            "namespace": self.namespace,
            "allowed": self.allowed,
            "reason": self.reason,
            "message": self.message,
            "notes": list(self.notes),
        }


@click.command()
@click.argument("file", metavar="POD.yaml|-", type=click.File("rb"))
@click.option("-n", "--namespace", default="default", show_default=True, help="Of objects that name none.")
@desk_options
def explain(file: BinaryIO, namespace: str, form: str, timeout_seconds: float) -> None:
    """What the webhook would decide about a pod right now, and why. Nothing is done.

    The file holds pods, or what makes pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob,
    ReplicationController, as YAML or JSON, in several documents or a List. Of each the next pod is looked at, as if it
    were the only one. `-` is stdin:

    \b
      kubectl get deployment -n batch reports -o yaml |
        kubectl exec -i -n at-least-semaphore-pod-hook deploy/at-least-semaphore-pod-hook -- \\
          at-least-semaphore explain -

    It also names what runs a pod unguarded without a word: annotations on the Deployment instead of in its template,
    a missing or misspelt at-least-semaphore-pod, annotations of another installation.

    Not looked at is whether the API server asks the webhook about these pods at all. It does not in kube-system, in
    the webhook's own namespace and, with the component opt-in, in namespaces without the label: there pods run without
    a slot.

    Exit status: 0 if all would be admitted, with a slot, without, or to wait for one; 1 if one would be refused; 2 if
    the file cannot be read, or nothing in it makes pods.
    """
    desk = open_desk(form, timeout_seconds)
    try:
        sources = sources_in(file.read())
    except Unreadable as error:
        raise Wrong(printable(f"{file.name}: {error}")) from error
    if not sources:
        raise Wrong(f"{file.name}: nothing in it makes pods")
    unheard: dict[str, str] = {}
    with desk.semaphores() as semaphores:
        found = [_explain(desk, semaphores, source, source.namespace or namespace, unheard) for source in sources]
    tell_unheard(unheard)
    if desk.form is Form.JSON:
        say_json({"pods": [each.fields() for each in found], "nodes_unheard": unheard})
    else:
        for each in found:
            _say(each)
        say(NOT_LOOKED_AT)
    if not all(each.allowed for each in found):
        raise click.exceptions.Exit(1)


def _explain(
    desk: Desk, semaphores: Semaphores, source: Source, namespace: str, unheard: dict[str, str]
) -> Explanation:
    """What the webhook decides in a dry run and, where that leaves it open, what the nodes say of the semaphore.

    Adds to `unheard` why nodes were not heard, by their addresses.
    """
    rules = rules_of(desk.settings)
    notes = mistakes(source, rules.group)
    try:
        review = parse_review(_review(source, namespace))
    except Malformed as error:
        notes.append("the API server refuses such a pod by itself; a number or a truth value has to be quoted")
        what = str(error).removeprefix("request.object.")
        return Explanation(source, namespace, False, MALFORMED, what, tuple(notes))
    verdict = decide(semaphores, rules, review, desk.deadline())
    request = parse_slot_request(review.annotations, rules.group) if verdict.reason is Reason.DRY_RUN else None
    if request is None:
        return _explanation(source, namespace, verdict, notes)
    if review.pod and injection.has_sidecar(review.pod, rules.container_name):
        notes.append("the pod has a sidecar already, as one that was admitted: a copy of it needs a slot of its own")
    semaphore = f"{namespace}/{request.key}"
    overview = semaphores.overview(desk.deadline(), only=semaphore)
    unheard.update(desk.unheard(overview))
    foreseen = foresee(request, semaphore, overview, len(desk.addresses))
    return _explanation(source, namespace, foreseen, [*notes, *caveats(request, overview)], semaphore)


def _explanation(
    source: Source, namespace: str, verdict: Verdict | None, notes: Sequence[str], semaphore: str = ""
) -> Explanation:
    if verdict is None:
        message = f"semaphore {semaphore}: most nodes have lost it, and the next pod that asks makes them learn it anew"
        return Explanation(source, namespace, None, UNKNOWN, message, tuple(notes))
    return Explanation(source, namespace, verdict.allowed, verdict.reason.value, verdict.message, tuple(notes))


def _review(source: Source, namespace: str) -> dict[str, Any]:
    """What the API server would send about its next pod, as a dry run."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "explain",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": namespace,
            "dryRun": True,
            "object": source.pod,
        },
    }


# What is said of an allowed pod, by the reason.
_ALLOWED = {
    Reason.GRANTED: "admitted, with a slot",
    Reason.ADMITTED_WITHOUT_SLOT: "admitted without a slot",
    Reason.NOT_ANNOTATED: "admitted without a slot: it asks for none",
    Reason.SIDECAR_REMOVED: "admitted without a slot: it asks for none, and loses our sidecar or gate that is in it",
    Reason.WAITING: "admitted, and held back by a scheduling gate until it has a slot",
    Reason.MIRROR: "left alone: it mirrors a static pod",
}


def _say(found: Explanation) -> None:
    if found.allowed:
        verdict = _ALLOWED[Reason(found.reason)]
        colour = "green" if found.reason == Reason.GRANTED else "yellow"
    elif found.allowed is None:
        verdict, colour = "admitted or refused, which cannot be told", "yellow"
    else:
        verdict, colour = f"refused ({found.reason})", "red"
    who = "it" if found.source.kind == "Pod" else "its pod"
    say(f"{found.source.title} in {found.namespace}: {who} would be {verdict}", colour=colour)
    for line in (found.message, *(f"note: {note}" for note in found.notes)):
        if line:
            say(f"  {line}")
