"""Which parameter of an encoder is read by token ids alone, so that a client may keep only the rows it needs."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

#: Types whose code was read: token ids choose embedding rows and, in some, are compared with the padding id.
#: Elsewhere ids may mean more (an end of text that is pooled, a token that gets global attention).
_ONLY_LOOKED_UP: Final = frozenset(
    {"albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"}
)
#: Ids up to the padding id keep their places in a compact table; more of them than this are not worth it.
_HIGHEST_PADDING_ID: Final = 1023


def tables_of_tokens(encoder: nn.Module, pad_id: int) -> tuple[str, ...]:
    """The name of the word embeddings in the encoder, or nothing where they may not be read by rows.

    Args:
        encoder: a model of transformers; may be without memory (device ``meta``).
        pad_id: the id that fills up batches.
    """
    model: Any = encoder
    table = model.get_input_embeddings()
    if model.config.model_type not in _ONLY_LOOKED_UP or not isinstance(table, nn.Embedding):
        return ()
    if not 0 <= pad_id <= _HIGHEST_PADDING_ID or table.padding_idx not in (None, pad_id) or table.max_norm is not None:
        return ()
    names = [name for name, value in encoder.named_parameters(remove_duplicate=False) if value is table.weight]
    return tuple(names) if len(names) == 1 else ()  # a table with two names is tied to something that reads all of it
