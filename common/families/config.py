"""The `model:` section of the server's configuration. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.families.adversarial_config import AdversarialConfig
from common.families.cross_stitch_config import CrossStitchConfig
from common.families.expert_config import MMoEConfig, OMoEConfig, PLEConfig, PooledExpertsConfig
from common.families.progressive_config import ProgressiveConfig
from common.families.soft_sharing_config import SoftSharingConfig
from common.families.tabular_config import SharedBottomConfig, SingleTaskConfig
from common.strict_model import StrictModel

#: Name of the word-level tokenizer over `common.data.synthetic.vocabulary()`, for the offline demo.
SYNTHETIC_WORDS: Final = "synthetic-words"


#: How a pair of texts is read: as one sequence with a separator, or as two sequences.
Pairs = Literal["joint", "separate"]


class HeadConfig(StrictModel):
    """What sits on the shared encoder for one task."""

    kind: Literal["linear", "mlp", "cosine"] = "linear"
    """`linear`: Dropout-Linear. `mlp`: Linear-ReLU-Dropout-Linear. `cosine`: no parameters; the cosine of the two
    vectors of a separate pair on the scale of `label_range`, 0 being its lowest and 1 its highest label."""

    hidden_size: int | None = Field(default=None, ge=1)
    """Width of an `mlp` head's hidden layer; left out: the encoder's hidden size, or
    the last width of the `experts` that it reads."""

    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of this head; left out: the model's `dropout`."""

    pairs: Pairs | None = None
    """How this task's pairs are read; left out: the model's `pairs`."""

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> Self:
        if self.kind != "mlp" and self.hidden_size is not None:
            raise ValueError(f"a {self.kind} head has no hidden_size; set kind: mlp or leave hidden_size out")
        if self.kind == "cosine" and self.dropout is not None:
            raise ValueError("a cosine head has no dropout; leave it out")
        if self.kind == "cosine" and self.pairs == "joint":
            raise ValueError("a cosine head compares two vectors; set pairs: separate or leave pairs out")
        return self


def _head_by_name(value: object) -> object:
    """Let ``head: mlp`` stand for ``head: {kind: mlp}``."""
    return {"kind": value} if isinstance(value, str) else value


Head = Annotated[HeadConfig, BeforeValidator(_head_by_name)]


def _one_or_more(value: object) -> object:
    """Let ``targets: query`` stand for ``targets: [query]``."""
    return [value] if isinstance(value, str) else value


class LoraSettings(StrictModel):
    """Low-rank adapters in a frozen encoder (Hu et al. 2021, arXiv 2106.09685); needs the extra `lora` (peft)."""

    rank: int = Field(default=8, ge=1)
    """Rank of the change that an adapter makes to its layer's weights."""

    alpha: int = Field(default=16, ge=1)
    """The change is multiplied by `alpha / rank`."""

    targets: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    """The linear layers that get one: the last parts of their names, such as query, or patterns of whole names, such
    as `encoder.layer.[45].*.value`. Left out: what peft takes for the architecture (BERT: query and value)."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before an adapter."""

    train_pooler: bool = True
    """Train the encoder's pooler, where it is used. It stands between encoder and heads, and many checkpoints have
    none that is pretrained (RoBERTa's); frozen, a drawn pooler would stay at random."""


class InlineEncoder(StrictModel):
    """An encoder defined by its configuration alone and trained from scratch."""

    config: dict[str, Any]
    """A transformers configuration: `model_type` (such as bert) and any of that type's settings.
    `vocab_size` may be left out: the tokenizer's size is taken."""

    tokenizer: str
    """`synthetic-words` (the words of the synthetic data), or a hub name, a folder or `package:NAME`."""

    @model_validator(mode="after")
    def _names_a_type(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("an inline encoder config needs model_type, such as bert")  # noqa: TRY004  # pydantic's way
        return self


class TransformerConfig(StrictModel):
    """A Hugging Face encoder shared by all tasks, with one head per task."""

    family: Literal["transformer"]

    encoder: str | InlineEncoder
    """A hub name, a folder (relative to the configuration file), `package:NAME` for an installed
    Python package with a `get_model_path()`, or `{config: ..., tokenizer: ...}`."""

    revision: str | None = None
    """Branch, tag or commit of an encoder from the hub."""

    weights: Literal["pretrained", "random"] | None = None
    """`pretrained` (default for a named encoder) or `random` (drawn from the run's seed; the only
    choice for an inline encoder)."""

    layers: int | None = Field(default=None, ge=1)
    """Keep only the encoder's first so many layers."""

    pooling: Literal["cls", "mean", "max", "first_last"] = "cls"
    """How token vectors become one vector: the first token's, or mean or maximum over real tokens, or the mean over
    real tokens of the first and last layer's average (Su et al. 2021, arXiv 2103.15316)."""

    pooler: bool = True
    """With `cls`: pass the vector through the encoder's own pooler, where it has one. With any other pooling a
    pooler is never built."""

    pairs: Pairs = "joint"
    """How tasks with two texts are read: `joint`, one sequence with a separator; `separate`, each text by itself, and
    the head gets [u, v, |u-v|, u*v] (Conneau et al. 2017, arXiv 1705.02364)."""

    lora: LoraSettings | None = None
    """Freeze the encoder and train low-rank adapters in it: the frozen weights travel once, the adapters every round.
    An export has them merged."""

    experts: PooledExpertsConfig | None = None
    """Experts that read the pooled vector, and gates; heads read the mixture. Of a pair whose texts are read separately
    each text has its own. Left out: heads read the pooled vector."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of every head that names none of its own."""

    encoder_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout inside the encoder (hidden and attention); left out: as its configuration says."""

    head: Head = HeadConfig()
    """The head of every task that is not named in `heads`: `linear`, `mlp` or a mapping."""

    heads: dict[str, Head] = Field(default_factory=dict)
    """Heads of single tasks, by task name."""

    max_length: int = Field(default=128, ge=4)
    """Longest input in tokens, special tokens included; longer texts are cut."""

    @model_validator(mode="after")
    def _inline_is_not_loaded(self) -> Self:
        if isinstance(self.encoder, InlineEncoder) and self.weights == "pretrained":
            raise ValueError("an inline encoder has no pretrained weights; set weights: random or name an encoder")
        if isinstance(self.encoder, InlineEncoder) and self.revision is not None:
            raise ValueError(f"revision ({self.revision}) is for an encoder from the hub, an inline encoder has none")
        return self

    @property
    def pretrained(self) -> bool:
        """Whether initial weights are loaded rather than drawn."""
        return self.weights == "pretrained" if self.weights else isinstance(self.encoder, str)


#: The `model:` section of any family over tabular rows.
AnyTabularConfig = Annotated[
    SingleTaskConfig
    | SharedBottomConfig
    | OMoEConfig
    | MMoEConfig
    | PLEConfig
    | CrossStitchConfig
    | ProgressiveConfig
    | AdversarialConfig
    | SoftSharingConfig,
    Field(discriminator="family"),
]

ModelConfig = Annotated[
    TransformerConfig | AnyTabularConfig,
    Field(discriminator="family"),
]
