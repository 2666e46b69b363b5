"""The tokens of an admission; the verdicts themselves are tried with real reviews in tests/process."""

import itertools
import re

from app.decision import tokens


def first(count: int, uid: str = "uid", semaphore: str = "batch/db", secret: bytes = b"secret") -> list[str]:
    return list(itertools.islice(tokens(uid, semaphore, secret), count))


def test_a_token_is_128_bits_in_hex():
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in first(5))


def test_every_try_has_a_token_of_its_own():
    assert 100 == len(set(first(100)))


def test_the_same_review_has_the_same_tokens_on_every_replica():
    assert first(5) == first(5)


def test_another_review_semaphore_or_secret_has_other_tokens():
    others = [first(5, uid="other"), first(5, semaphore="batch/other"), first(5, secret=b"other")]

    assert 20 == len({token for each in [first(5), *others] for token in each})


def test_texts_that_run_into_each_other_have_different_tokens():
    assert first(1, uid="ab", semaphore="c") != first(1, uid="a", semaphore="bc")
