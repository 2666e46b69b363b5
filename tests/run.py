"""`make run`: three nodes and a webhook that stay until Ctrl-C, with a review to send."""

import json
import signal
import sys

from tests.harness.nodes import HOOK_PASSWORD, HOOK_USER
from tests.harness.scene import scene
from tests.harness.webhook import pod_asking, review_of

LOOK = (
    f'import redis; node = redis.Redis(port={{port}}, username="{HOOK_USER}", password="{HOOK_PASSWORD}"); '
    '[print(int(slot), node.get(b"lease:" + token), node.pttl(b"lease:" + token), "ms left") '
    'for slot, token in node.hgetall("slots:batch/reports-db").items() if slot.isdigit()]'
)


def main() -> int:
    # SIGTERM is to end the nodes and the webhook as well; SIGINT is ignored in a script's background.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.default_int_handler)
    try:
        with scene() as running:
            webhook = running.webhook
            review, authority = webhook.folder / "review.json", webhook.folder / "ca.crt"
            review.write_text(json.dumps(review_of(pod_asking(), uid="UID"), indent=2))
            webhook.authority.cert_pem.write_to_path(authority)
            print(f"""\
The webhook serves https://localhost:{webhook.port}/mutate, its metrics http://localhost:{webhook.metrics_port}/metrics
The Redis nodes are {", ".join(str(node.address) for node in running.nodes)}
The webhook's log is {webhook.log_file}

Ask for a pod to be admitted, as an API server does. Three are, the fourth is told who holds the slots; as no
sidecar runs for them, their slots are free again after 300 s:

  sed "s/UID/$(cat /proc/sys/kernel/random/uuid)/" {review} | \\
    curl --cacert {authority} --header 'Content-Type: application/json' --data-binary @- \\
    'https://localhost:{webhook.port}/mutate?timeout=10s'

See on a node who holds which slot:

  {sys.executable} -c '{LOOK.format(port=running.nodes[0].address.port)}'

Ctrl-C ends it all.""", flush=True)  # fmt: skip
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
