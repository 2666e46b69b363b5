"""`at-least-semaphore`, or `python -m app.cli`."""

import logging

import click

from app.cli.check import check
from app.cli.explain import explain
from app.cli.holders import holders, semaphores
from app.cli.nodes import nodes
from app.cli.release import release
from app.cli.repair import repair


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="at-least-semaphore-pod-hook")
def main() -> None:
    """Who holds the slots of which semaphore, how the nodes are, and why a pod is refused.

    A semaphore is called NAMESPACE/KEY. It has so many slots as its length, each held by one pod at most. A slot is
    held when a majority of the Redis nodes says so.

    The nodes and passwords are those of the webhook: the same variables of the environment. So this is best run where
    the webhook runs:

    \b
      kubectl exec -n at-least-semaphore-pod-hook deploy/at-least-semaphore-pod-hook -- \\
        at-least-semaphore holders batch/reports-db

    Nothing but `release` and `repair` changes anything. Tokens are never shown, only what tells one from the other.

    Exit status: 0 if all is well, 1 if not (each command says what that means), 2 if the command, a file or a
    setting is wrong.
    """
    # What the nodes' connections say to a log, the commands tell in their own words.
    logging.getLogger("app").addHandler(logging.NullHandler())


for command in (holders, semaphores, nodes, release, repair, explain, check):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="at-least-semaphore")
