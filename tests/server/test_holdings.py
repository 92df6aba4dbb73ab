"""What a client has is not sent; what it has not always is."""

from __future__ import annotations

import numpy as np

from common.tensors import EncodedTensor, encode_tensor
from server.holdings import Holdings


def tensor(slot: str, *values: float) -> EncodedTensor:
    return encode_tensor(slot, np.asarray(values, np.float32))


def held(tensors: list[EncodedTensor]) -> list[bool]:
    return [one.header.held for one in tensors]


BODY, HEAD, EMPTY = tensor("body", 1, 2), tensor("head", 3), tensor("empty")


def test_nothing_is_held_by_a_client_that_lists_nothing() -> None:
    assert held(Holdings().outgoing([BODY, HEAD, EMPTY])) == [False, False, False]


def test_what_is_listed_is_held_whatever_the_slot() -> None:
    holdings = Holdings()
    holdings.listed(frozenset({BODY.header.key, EMPTY.header.key}))
    outgoing = holdings.outgoing([tensor("another", 1, 2), HEAD, EMPTY])
    assert held(outgoing) == [True, False, False]
    assert not outgoing[0].parts


def test_the_size_has_to_be_right_too() -> None:
    holdings = Holdings()
    holdings.listed(frozenset({BODY.header.key._replace(nbytes=4)}))
    assert held(holdings.outgoing([BODY])) == [False]


def test_the_list_counts_until_a_work_was_sent_completely() -> None:
    holdings = Holdings()
    holdings.listed(frozenset({BODY.header.key}))
    for _ in range(2):  # the first was replaced before it was complete
        outgoing = holdings.outgoing([BODY, HEAD])
        assert held(outgoing) == [True, False]
    holdings.delivered(outgoing)
    assert held(holdings.outgoing([BODY, HEAD])) == [True, True]
    assert held(holdings.outgoing([BODY, tensor("head", 4)])) == [True, False]
    holdings.delivered([HEAD])
    assert held(holdings.outgoing([BODY, HEAD])) == [False, True]
