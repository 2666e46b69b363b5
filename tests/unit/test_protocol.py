"""What webhook and sidecar agree on."""

from collections.abc import Iterator
from itertools import combinations, product

import pytest

from sidecar.protocol import Address, Keys, Renewal, majority, parse_addresses, renewal

SIZES = [1, 3, 5]


def every_set_of_answers(nodes: int) -> Iterator[dict[int, bool]]:
    """Each node has the lease, has it not, or is not heard."""
    for answers in product([True, False, None], repeat=nodes):
        yield {node: answer for node, answer in enumerate(answers) if answer is not None}


@pytest.mark.parametrize("nodes", SIZES)
def test_a_renewal_is_judged_by_more_than_half_of_all_nodes(nodes):
    """Silent nodes count in the total, never as a vote."""
    for answers in every_set_of_answers(nodes):
        kept, lost = list(answers.values()).count(True), list(answers.values()).count(False)
        expected = Renewal.KEPT if kept > nodes / 2 else Renewal.LOST if lost > nodes / 2 else Renewal.UNKNOWN
        assert expected is renewal(answers, nodes), answers


@pytest.mark.parametrize("nodes", SIZES)
def test_a_renewal_that_is_decided_stays_so_whatever_answers_come_later(nodes):
    for answers in every_set_of_answers(nodes):
        for heard in range(len(answers)):
            for some in combinations(answers, heard):
                early = renewal({node: answers[node] for node in some}, nodes)
                assert early in (Renewal.UNKNOWN, renewal(answers, nodes))


@pytest.mark.parametrize("nodes", range(1, 10))
def test_two_majorities_always_share_a_node(nodes):
    assert 2 * majority(nodes) > nodes
    assert 2 * (majority(nodes) - 1) <= nodes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis-0:6379", [("redis-0", 6379)]),
        ("a:1, b:2 ,c:65535", [("a", 1), ("b", 2), ("c", 65535)]),
        (
            "redis-0.redis.hook.svc.cluster.local:6379,[::1]:1,[fe80::1%eth0]:2",
            [("redis-0.redis.hook.svc.cluster.local", 6379), ("::1", 1), ("fe80::1%eth0", 2)],
        ),
        ("10.0.0.1:1,10.0.0.1:2,10.0.0.2:1", [("10.0.0.1", 1), ("10.0.0.1", 2), ("10.0.0.2", 1)]),
    ],
)
def test_addresses_are_hosts_with_ports(text, expected):
    assert tuple(Address(*each) for each in expected) == parse_addresses(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "redis-0", "redis-0:", ":6379", "redis-0:0", "redis-0:65536", "redis-0:six", "::1:6379"),
        *("a:1,", "a b:1", "redis://a:1", "user@a:1", "a:1:2", "[a:1"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_remedy(text):
    with pytest.raises(ValueError, match="write host:port, separated by commas"):
        parse_addresses(text)


def test_an_even_number_of_addresses_is_refused():
    """Four nodes bear no more failures than three."""
    with pytest.raises(ValueError, match="2 addresses; give an odd number"):
        parse_addresses("a:1,b:1")


def test_the_same_address_twice_is_refused():
    with pytest.raises(ValueError, match="names an address twice"):
        parse_addresses("a:1,b:1,a:1")


@pytest.mark.parametrize("text", ["redis-0:6379", "[::1]:6379"])
def test_an_address_is_written_as_it_is_read(text):
    assert text == str(parse_addresses(text)[0])


def test_keys_carry_the_variant_as_a_prefix():
    assert names(Keys()) == ("slots:n/k", "lease:t", "reservation:t")
    assert names(Keys("blue")) == ("blue:slots:n/k", "blue:lease:t", "blue:reservation:t")


def names(keys: Keys) -> tuple[str, str, str]:
    return keys.record("n/k"), keys.lease("t"), keys.reservation("t")
