"""Texts to flat ids, and the word-level tokenizer of the demo."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from common.data.synthetic import vocabulary
from common.errors import ProtocolError
from common.families import tokenization
from common.families.tokenization import tokenize, tokenizer_from_json, word_level_tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    plain = word_level_tokenizer(["good", "Film", "bad", "."])
    return tokenizer_from_json(plain.to_str().encode(), max_length=8)


def test_single_texts_get_cls_and_sep(tokenizer: Tokenizer) -> None:
    ids, type_ids, offsets = tokenize(tokenizer, [["Good film.", "bad", "unheard bad"]], with_type_ids=False)
    assert type_ids is None
    assert offsets.tolist() == [0, 5, 8, 12]
    assert ids.tolist() == [2, 4, 5, 7, 3, 2, 6, 3, 2, 1, 6, 3]
    assert ids.dtype == np.int32


def test_pairs_are_told_apart_by_type_ids(tokenizer: Tokenizer) -> None:
    ids, type_ids, offsets = tokenize(tokenizer, [["good film"], ["bad"]], with_type_ids=True)
    assert ids.tolist() == [2, 4, 5, 3, 6, 3]
    assert type_ids is not None
    assert type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert offsets.tolist() == [0, 6]


def test_the_longer_text_of_a_pair_is_cut_first(tokenizer: Tokenizer) -> None:
    ids, _, offsets = tokenize(tokenizer, [["good " * 20], ["bad"]], with_type_ids=False)
    assert offsets.tolist() == [0, 8]
    assert ids.tolist() == [2, 4, 4, 4, 4, 3, 6, 3]


def test_a_tokenizer_that_pads_is_stopped_from_it() -> None:
    padding = word_level_tokenizer(["good"])
    padding.enable_padding(length=64)
    quiet = tokenizer_from_json(padding.to_str().encode(), max_length=8)
    assert tokenize(quiet, [["good"]], with_type_ids=False)[2].tolist() == [0, 3]


def test_rows_are_the_same_however_they_are_chunked(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [["good " * (i % 5) + "bad" for i in range(23)], ["film" for _ in range(23)]]
    whole = tokenize(tokenizer, texts, with_type_ids=True)
    monkeypatch.setattr(tokenization, "_CHUNK", 4)
    for one, other in zip(whole, tokenize(tokenizer, texts, with_type_ids=True), strict=True):
        assert one is not None
        assert np.array_equal(one, other)  # type: ignore[arg-type]  # neither is None


def test_no_rows_give_no_tokens(tokenizer: Tokenizer) -> None:
    ids, type_ids, offsets = tokenize(tokenizer, [[]], with_type_ids=True)
    assert len(ids) == 0
    assert type_ids is not None
    assert len(type_ids) == 0
    assert offsets.tolist() == [0]


def test_every_word_of_the_synthetic_data_has_a_token_of_its_own() -> None:
    words = vocabulary()
    tokenizer = word_level_tokenizer(words)
    unknown = [
        word for word in words if tokenizer.encode(word, add_special_tokens=False).ids != [tokenizer.token_to_id(word)]
    ]
    assert unknown == []


def test_what_is_no_tokenizer_is_a_protocol_error() -> None:
    for data in (b"", b"{}", b"\xff\xfe"):
        with pytest.raises(ProtocolError) as caught:
            tokenizer_from_json(data, max_length=8)
        assert caught.value.code == "bad_description"
