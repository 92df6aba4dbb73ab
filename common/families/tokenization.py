"""Texts to token ids with a fast tokenizer (`tokenizers`), and the word-level one of the offline demo."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from common.errors import ProtocolError

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_CONFIG_JSON: Final = "tokenizer_config.json"

#: Rows tokenised at a time: enough for all cores, and little memory in flight.
_CHUNK: Final = 4096

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def tokenizer_from_json(data: bytes, *, max_length: int) -> Tokenizer:
    """A tokenizer that cuts at `max_length` and never pads.

    Raises:
        ProtocolError: (code ``bad_description``) the bytes are not a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ProtocolError("bad_description", f"{TOKENIZER_JSON} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Sequence[str] | np.ndarray], *, with_type_ids: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Tokenise rows of one or two texts, special tokens included.

    Args:
        tokenizer: from `tokenizer_from_json`.
        texts: one sequence of N strings, or two for pairs.
        with_type_ids: also return which text of a pair each token belongs to.

    Returns:
        ids (T,) int32, type ids (T,) uint8 or None, offsets (N + 1,) int64.
    """
    ids: list[np.ndarray] = []
    type_ids: list[np.ndarray] = []
    lengths = [np.zeros(1, dtype=np.int64)]
    for chunk in _chunks(texts):
        encodings = tokenizer.encode_batch_fast(chunk)
        lengths.append(np.fromiter((len(e) for e in encodings), dtype=np.int64, count=len(encodings)))
        ids.append(np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int32))
        if with_type_ids:
            type_ids.append(np.fromiter(itertools.chain.from_iterable(e.type_ids for e in encodings), dtype=np.uint8))
    offsets = np.cumsum(np.concatenate(lengths))
    flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    if not with_type_ids:
        return flat, None, offsets
    return flat, np.concatenate(type_ids) if type_ids else np.empty(0, dtype=np.uint8), offsets


def _chunks(texts: Sequence[Sequence[str] | np.ndarray]) -> Iterator[list[str] | list[tuple[str, str]]]:
    count = len(texts[0])
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        if len(texts) == 1:
            yield [str(text) for text in texts[0][part]]
        else:
            yield [(str(one), str(two)) for one, two in zip(texts[0][part], texts[1][part], strict=True)]


def word_level_tokenizer(words: Sequence[str]) -> Tokenizer:
    """One token per word, lower-cased and split at blanks and punctuation, in BERT's layout.

    Ids 0 to 3 are [PAD], [UNK], [CLS] and [SEP]; the words follow in their order.
    """
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*_SPECIAL, *(word.lower() for word in words)]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  # not a password
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer
