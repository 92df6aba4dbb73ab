"""Which parameters of a model are meant: the one way to say so in a configuration.

==============================  ================================================================
selector                        parameters
==============================  ================================================================
``everything``                  all
``backbone``                    all but the heads
``heads``                       the heads of all tasks
``head:TASK``                   the head of one task
``own:TASK``                    what one task alone trains: its head, and in some families a column or experts
``embeddings``, ``pooler``      that part of the encoder
``layers:N``, ``layers:N-M``    encoder layers, counted from 0 at the input; both ends are meant
``lower``, ``middle``,          thirds of the encoder's layers, as equal as can be (the upper ones get
``upper``                       what is left over); the embeddings belong to ``lower``, the pooler and
                                the experts and gates that stand on it to ``upper``
``norms``                       weights, biases and statistics of normalisation layers
``adapters``                    low-rank adapters (LoRA)
``encoder.*.LayerNorm.*``       whatever matches this pattern: a name that holds a dot; ``*`` ``?`` ``[ab]``
==============================  ================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from common.blueprint import ParameterSpec
from common.errors import ConfigError

HEAD: Final = "head"
EMBEDDINGS: Final = "embeddings"
POOLER: Final = "pooler"
STITCH: Final = "stitch"
GATE: Final = "gate"
#: Groups of experts begin so.
EXPERT: Final = "expert."
KEYWORDS: Final = (
    "everything", "backbone", "heads", "embeddings", "pooler", "lower", "middle", "upper", "norms", "adapters",
)  # fmt: skip
#: Beginnings of selectors that name a task.
OF_A_TASK: Final = ("head:", "own:")
_LAYER: Final = re.compile(r"layer\.(\d+)")
_LAYERS: Final = re.compile(r"layers:(\d+)(?:-(\d+))?")
_NORM: Final = re.compile(r"(?:^|\.)(?:\w*norm\d*(?:_\w+)?|ln_?\w{0,2}|bn_?\d*)\.", re.IGNORECASE)
_ADAPTER: Final = re.compile(r"(?:^|\.)lora_\w+(?:\.|$)")

_Predicate = Callable[[ParameterSpec], bool]


def check_selector(text: str) -> str:
    """The selector itself when it has a known form.

    Raises:
        ValueError: it is none of those listed in the module; names them.
    """
    known = text in KEYWORDS or text.startswith(OF_A_TASK) or _LAYERS.fullmatch(text) or "." in text
    if not text or not known:
        raise ValueError(
            f"{text!r} selects nothing: allowed are {', '.join(KEYWORDS)}, head:TASK, own:TASK, layers:N, layers:N-M, "
            "or a pattern of parameter names, which holds a dot"
        )
    span = _LAYERS.fullmatch(text)
    if span and span[2] is not None and int(span[2]) < int(span[1]):
        raise ValueError(f"{text!r}: the range runs backwards")
    return text


def select(selectors: str | Iterable[str], specs: Iterable[ParameterSpec]) -> frozenset[str]:
    """Names of the parameters that any of the selectors means.

    Args:
        selectors: one, or several that are joined.
        specs: the parameters to choose from: a whole blueprint's, so that thirds and ranges are of the whole encoder.

    Raises:
        ConfigError: a selector is of no known form, matches none of the parameters, or means layers that are not there.
    """
    known = list(specs)
    layers = layer_count(known)
    chosen: set[str] = set()
    for text in (selectors,) if isinstance(selectors, str) else selectors:
        try:
            means = _predicate(check_selector(text), known)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        found = {spec.name for spec in known if means(spec)}
        if not found:
            raise ConfigError(f"{text!r} matches no parameter of this model ({_in_words(known)})")
        if (span := _LAYERS.fullmatch(text)) and int(span[2] or span[1]) >= layers:
            raise ConfigError(f"{text!r}: the encoder's layers are 0 to {layers - 1}")
        chosen |= found
    return frozenset(chosen)


def select_present(selectors: Iterable[str], specs: Iterable[ParameterSpec]) -> frozenset[str]:
    """The same, of a part of a model: a selector may match none of these parameters (the head of another's task).

    Args:
        selectors: of a known form.
        specs: the parameters that are there.
    """
    known = list(specs)
    meanings = [_predicate(check_selector(text), known) for text in selectors]
    return frozenset(spec.name for spec in known if any(means(spec) for means in meanings))


def layer_of(group: str) -> int | None:
    """Number of the encoder layer that a blueprint group is, from 0 at the input; None for any other group."""
    found = _LAYER.fullmatch(group)
    return int(found[1]) if found else None


def layer_count(specs: Iterable[ParameterSpec]) -> int:
    """Number of encoder layers among these parameters."""
    return 1 + max((layer for spec in specs if (layer := layer_of(spec.group)) is not None), default=-1)


def expert_level(group: str) -> int:
    """Level, from 0 at the input, of an expert by its group: L of ``expert.L.shared.N``, 0 of ``expert.N``."""
    parts = group.split(".")
    return int(parts[1]) if len(parts) > 2 else 0


def is_mixture(group: str) -> bool:
    """Whether a blueprint group is of experts or gates: above an encoder, where there is one, and below the heads."""
    return group == GATE or group.startswith(EXPERT)


def is_norm(name: str) -> bool:
    """Whether a tensor of this name belongs to a normalisation layer."""
    return bool(_NORM.search(name))


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name belongs to a low-rank adapter."""
    return bool(_ADAPTER.search(name))


def _predicate(text: str, specs: Sequence[ParameterSpec]) -> _Predicate:
    if text.startswith("head:"):
        task = text.removeprefix("head:")
        return lambda spec: spec.group == HEAD and task in spec.used_by
    if text.startswith("own:"):
        alone = frozenset({text.removeprefix("own:")})
        return lambda spec: spec.trained_by == alone
    if span := _LAYERS.fullmatch(text):
        return _between(int(span[1]), int(span[2] or span[1]))
    match text:
        case "everything":
            return lambda _: True
        case "backbone":
            return lambda spec: spec.group != HEAD
        case "heads":
            return lambda spec: spec.group == HEAD
        case "embeddings" | "pooler":
            return lambda spec: spec.group == text
        case "norms":
            return lambda spec: is_norm(spec.name)
        case "adapters":
            return lambda spec: is_adapter(spec.name)
        case "lower" | "middle" | "upper":
            return _third(text, layer_count(specs))
        case _:
            return lambda spec: fnmatchcase(spec.name, text)


def _between(first: int, last: int) -> _Predicate:
    def means(spec: ParameterSpec) -> bool:
        layer = layer_of(spec.group)
        return layer is not None and first <= layer <= last

    return means


def _third(which: str, layers: int) -> _Predicate:
    first, end = {
        "lower": (0, layers // 3),
        "middle": (layers // 3, 2 * layers // 3),
        "upper": (2 * layers // 3, layers),
    }[which]
    beside = {"lower": EMBEDDINGS, "upper": POOLER}.get(which)

    def means(spec: ParameterSpec) -> bool:
        layer = layer_of(spec.group)
        if layer is None:
            return spec.group == beside or (which == "upper" and is_mixture(spec.group))
        return first <= layer < end

    return means


def _in_words(specs: Sequence[ParameterSpec]) -> str:
    groups = list(dict.fromkeys(spec.group for spec in specs))
    shown = ", ".join(groups[:8]) + (" ..." if len(groups) > 8 else "")
    return f"it has the groups {shown}"
