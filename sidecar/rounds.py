"""One question to all nodes and what their answers say together.

Knows answers and counts. Knows no thread and no clock.
"""

from sidecar.nodes import Answer, explain
from sidecar.protocol import Renewal, renewal


class Round:
    """The answers to one question, as far as they have come."""

    def __init__(self, number: int, nodes: int) -> None:
        self.number = number
        self.nodes = nodes
        self.replies: dict[int, list[object]] = {}
        self.failures: dict[int, str] = {}

    def take(self, answer: Answer) -> None:
        """Take no answer to another round, it came too late; one that ends with no number is a failure."""
        if answer.round != self.number:
            return
        if answer.replies and isinstance(answer.replies[-1], int):
            self.replies[answer.node] = answer.replies
        else:
            self.failures[answer.node] = answer.failure or f"replied {explain(answer.replies[-1])}"

    def complete(self) -> bool:
        return len(self.replies) + len(self.failures) == self.nodes

    def renewal(self) -> Renewal:
        """What the answers to a renewal mean: their last reply is that of PEXPIRE, 1 or 0."""
        return renewal({node: replies[-1] == 1 for node, replies in self.replies.items()}, self.nodes)

    def decided(self) -> bool:
        return self.complete() or self.renewal() is not Renewal.UNKNOWN

    def claimed(self, before: set[int]) -> set[int]:
        """Where the reservation has been removed, given where it was `before` this renewal.

        A node without the lease may be given it back with its reservation, by a repair or a new grant.
        """
        removed = {
            node
            for node, replies in self.replies.items()
            if len(replies) == 2 and replies[-1] == 1 and isinstance(replies[0], int)
        }
        return (before - self.lacking()) | removed

    def lacking(self) -> set[int]:
        """The nodes that say that there is no such lease."""
        return {node for node, replies in self.replies.items() if replies[-1] == 0}
