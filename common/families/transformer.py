"""The `transformer` family: one Hugging Face encoder shared by all tasks, one head per task.

Parameters are named ``encoder.<name in the Hugging Face model>`` and ``heads.<task>.<name>``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tokenizers
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedConfig

from common.blueprint import Blueprint
from common.errors import ConfigError, DataError, ProtocolError
from common.families import encoder_source
from common.families.base import ModelSummary
from common.families.config import SYNTHETIC_WORDS, InlineEncoder, TransformerConfig
from common.families.encoded_pairs import EncodedPairs
from common.families.encoded_text import EncodedText, labels_of, weights_of
from common.families.encoder_source import EncoderSource
from common.families.heads import check_task_names, head_spec, initial_head_value
from common.families.layers import first_linear_value
from common.families.lora import adapted_name, check_peft_is_installed, initial_adapter_value, lora_spec
from common.families.module_blueprint import HEADS, blueprint_of, federated_tensors
from common.families.ties import Tie
from common.families.token_rows import tables_of_tokens
from common.families.tokenization import (
    TOKENIZER_CONFIG_JSON,
    TOKENIZER_JSON,
    tokenize,
    tokenizer_from_json,
)
from common.families.transformer_model import (
    FAMILY,
    TransformerDescription,
    TransformerModel,
    assemble,
    encoder_config,
    group_of,
    is_trained,
    longest_input,
    new_encoder,
    pooler_argument,
    takes,
)
from common.seeds import derive_seed
from common.selectors import is_adapter

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.tasks import TaskSpec


@dataclass(frozen=True)
class InitialEncoder:
    """Where the encoder's first values come from: a source of weights, or (None) the seed."""

    source: EncoderSource | None


class TransformerFamily:
    """See `common.families.base.Family`."""

    name = FAMILY
    feature_columns: tuple[str, ...] = ()

    def __init__(
        self,
        description: TransformerDescription,
        assets: Mapping[str, bytes],
        tasks: Mapping[str, TaskSpec],
        initial: InitialEncoder | None,
    ) -> None:
        self.tasks = dict(tasks)
        self._description = description
        self._assets = dict(assets)
        self._initial = initial

    @classmethod
    def from_config(cls, config: TransformerConfig, tasks: Mapping[str, TaskSpec], *, base_dir: Path) -> Self:
        """Find the encoder and fit it to the settings; see `common.families.build_family`."""
        check_task_names(tasks)
        _check_texts(tasks)
        if unknown := sorted(config.heads.keys() - tasks.keys()):
            raise ConfigError(f"model.heads: no such task {unknown}; configured are {sorted(tasks)}")
        source, settings, assets, label = _resolve(config, base_dir)
        if settings.is_encoder_decoder:
            raise ConfigError(f"model.encoder: {label} is an encoder-decoder; name an encoder such as a BERT")
        full_depth = settings.num_hidden_layers
        if config.layers is not None:
            encoder_source.keep_first_layers(settings, config.layers)
            label = f"{label}, first {config.layers} of {full_depth} layers"
        if config.encoder_dropout is not None:
            encoder_source.set_dropout(settings, config.encoder_dropout)
        pooler = config.pooler and config.pooling == "cls" and takes(settings, "__init__", "add_pooling_layer")
        type_ids = takes(settings, "forward", "token_type_ids") and (getattr(settings, "type_vocab_size", 0) or 0) > 1
        description = TransformerDescription(
            label=label,
            encoder=encoder_source.portable_config(settings),
            pooling=config.pooling,
            pooler=pooler,
            max_length=config.max_length,
            token_type_ids=type_ids,
            experts=config.experts,
            pad_id=_pad_id(settings, assets),
            heads={
                name: head_spec(
                    config.heads.get(name, config.head),
                    task,
                    default_dropout=config.dropout,
                    pairs=config.pairs,
                    input_size=config.experts.hidden[-1] if config.experts else settings.hidden_size,
                )
                for name, task in tasks.items()
            },
        )
        family = cls(
            description,
            {**assets, TOKENIZER_CONFIG_JSON: _with_inputs(assets[TOKENIZER_CONFIG_JSON], type_ids)},
            tasks,
            InitialEncoder(source if config.pretrained else None),
        )
        encoder = family._check_sizes()
        if config.lora is None:
            return family
        lora = lora_spec(config.lora, encoder, settings.model_type)
        with_adapters = {"lora": lora, "label": f"{label}, LoRA of rank {lora.rank}"}
        return cls(description.model_copy(update=with_adapters), family._assets, tasks, family._initial)

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], assets: Mapping[str, bytes], tasks: Mapping[str, TaskSpec]
    ) -> Self:
        """Rebuild from what `describe` and `assets` returned; see `common.families.family_from_description`."""
        try:
            parsed = TransformerDescription.model_validate(dict(description))
        except ValidationError as error:
            raise ProtocolError("bad_description", f"not a transformer description: {error}") from error
        if missing := sorted(tasks.keys() - parsed.heads.keys()):
            raise ProtocolError("bad_description", f"the model has no head for the tasks {missing}")
        if TOKENIZER_JSON not in assets:
            raise ProtocolError("bad_description", f"the asset {TOKENIZER_JSON} is missing")
        if parsed.lora is not None:
            check_peft_is_installed()
        return cls(parsed, assets, tasks, None)

    def blueprint(self) -> Blueprint:
        """See `Family.blueprint`."""
        return self._blueprint

    @cached_property
    def _blueprint(self) -> Blueprint:
        tasks = tuple(self.tasks)
        with torch.device("meta"):
            model = assemble(self._description, tasks)
        experts = self._description.experts
        own = (HEADS, "gate.") if experts and experts.kind == "mmoe" else (HEADS,)
        return blueprint_of(model, FAMILY, tasks, group_of, partial(is_trained, self._description), own)

    @cached_property
    def token_rows(self) -> tuple[str, ...]:
        """See `Family.token_rows`: the word embeddings, of encoders known to use token ids for nothing else."""
        with torch.device("meta"):
            encoder = new_encoder(encoder_config(self._description), pooler=self._description.pooler)
        return tuple(f"encoder.{name}" for name in tables_of_tokens(encoder, self._description.pad_id))

    def build(self, tasks: Sequence[str]) -> TransformerModel:
        """See `Family.build`."""
        if not tasks or not set(tasks) <= self.tasks.keys():
            raise ConfigError(f"a model is built for some of {sorted(self.tasks)}, not for {sorted(tasks)}")
        with _own_randomness(0), torch.device("cpu"):
            return assemble(self._description, tasks)

    def initial_values(self, seed: int) -> dict[str, Tensor]:
        """See `Family.initial_values`."""
        if self._initial is None:
            raise ConfigError("initial values are drawn by the server; this family was rebuilt from a description")
        config = encoder_config(self._description)
        with _own_randomness(derive_seed(seed, "init", "encoder")), torch.device("cpu"):
            if self._initial.source is None:
                encoder = new_encoder(config, pooler=self._description.pooler)
            else:
                arguments = pooler_argument(config, self._description.pooler)
                encoder = encoder_source.load_pretrained(self._initial.source, config, arguments)
        lora = self._description.lora
        values = {
            f"encoder.{adapted_name(name, lora) if lora else name}": tensor.detach().to(torch.float32).contiguous()
            for name, tensor in federated_tensors(encoder)
        }
        std = float(getattr(config, "initializer_range", 0.02))
        shapes = {p.name: p.shape for p in self._blueprint.parameters}

        def first(name: str, shape: tuple[int, ...]) -> Tensor:
            if name in values:
                return values.pop(name)
            if is_adapter(name):
                return initial_adapter_value(name, shape, seed=seed)
            if name.startswith(("experts.", "gate.")):
                return first_linear_value(name, shapes, seed)
            return initial_head_value(name, shape, seed=seed, std=std)

        return {p.name: first(p.name, p.shape) for p in self._blueprint.parameters}

    def encode(self, task: str, examples: Examples) -> EncodedText | EncodedPairs:
        """See `Family.encode`."""
        spec = self.tasks[task]
        if missing := [column for column in spec.text if column not in examples.columns]:
            raise DataError(f"{examples.source}: task {task!r} needs the text columns {missing}")
        tokenizer = tokenizer_from_json(self._assets[TOKENIZER_JSON], max_length=self._description.max_length)
        texts = [examples.columns[column] for column in spec.text]
        separate = self._description.heads[task].separate
        if separate:
            texts = [[text for pair in zip(*texts, strict=True) for text in pair]]
        ids, type_ids, offsets = tokenize(tokenizer, texts, with_type_ids=self._description.token_type_ids)
        labels, weights = labels_of(spec, examples), weights_of(examples)
        if separate:
            labels = labels.repeat_interleave(2)
            weights = None if weights is None else weights.repeat_interleave(2)
            return EncodedPairs(EncodedText(ids, type_ids, offsets, labels, self._description.pad_id, weights))
        return EncodedText(ids, type_ids, offsets, labels, self._description.pad_id, weights)

    def encoding_key(self, task: str) -> str | None:
        """See `Family.encoding_key`; None for pairs that are read separately, which are not kept."""
        given = self._description
        if given.heads[task].separate:
            return None
        decides = [
            hashlib.sha256(self._assets[TOKENIZER_JSON]).hexdigest(),
            tokenizers.__version__,
            given.max_length,
            given.token_type_ids,
            given.pad_id,
            len(self.tasks[task].text),
        ]
        return json.dumps(decides)

    def describe(self) -> dict[str, Any]:
        """See `Family.describe`."""
        return self._description.model_dump(mode="json")

    def assets(self) -> dict[str, bytes]:
        """See `Family.assets`: ``tokenizer.json``, and ``tokenizer_config.json`` for the export."""
        return dict(self._assets)

    def ties(self) -> tuple[Tie, ...]:
        """See `Family.ties`: none."""
        return ()

    def summary(self) -> ModelSummary:
        """See `Family.summary`."""
        return ModelSummary.of(self._blueprint, self._description.label)

    def _check_sizes(self) -> nn.Module:
        """The encoder on the meta device, when it can be built and takes inputs of the wanted length."""
        try:
            with torch.device("meta"):
                encoder = new_encoder(encoder_config(self._description), pooler=self._description.pooler)
        except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
            # Sizes that contradict each other; each architecture of transformers has its own checks and words.
            raise ConfigError(f"model.encoder: no encoder can be built from its configuration: {error}") from error
        if (limit := longest_input(encoder)) and self._description.max_length > limit:
            raise ConfigError(
                f"model.max_length: {self._description.max_length}; this encoder takes at most {limit} tokens"
            )
        return encoder


def _resolve(
    config: TransformerConfig, base_dir: Path
) -> tuple[EncoderSource | None, PreTrainedConfig, dict[str, bytes], str]:
    """Source of weights, encoder configuration, tokenizer files and label."""
    if isinstance(config.encoder, InlineEncoder):
        inline = config.encoder
        name = inline.tokenizer
        origin = None if name == SYNTHETIC_WORDS else encoder_source.locate(name, base_dir=base_dir)
        assets = encoder_source.read_tokenizer(name, origin, max_length=config.max_length)
        settings = encoder_source.inline_config(
            inline, vocabulary_size=_vocabulary_size(assets), pad_id=_pad_token_id(assets)
        )
        return None, settings, assets, f"{settings.model_type} from scratch, tokenizer {name}"
    source = encoder_source.locate(config.encoder, base_dir=base_dir, revision=config.revision)
    if config.pretrained:
        encoder_source.check_has_weights(source)
    settings = encoder_source.read_config(source)
    assets = encoder_source.read_tokenizer(config.encoder, source, max_length=config.max_length)
    if _vocabulary_size(assets) > settings.vocab_size:
        raise ConfigError(
            f"model.encoder: the tokenizer of {source.label!r} has {_vocabulary_size(assets)} tokens, "
            f"the encoder only {settings.vocab_size}"
        )
    label = source.label if config.pretrained else f"{source.label}, random weights"
    return source, settings, assets, label


def _check_texts(tasks: Mapping[str, TaskSpec]) -> None:
    for name, task in tasks.items():
        if len(task.text) not in (1, 2):
            raise ConfigError(
                f"tasks.{name}.text: a transformer reads 1 or 2 text columns, not {len(task.text)}; "
                "for tabular rows set model.family: shared_bottom"
            )


def _vocabulary_size(assets: Mapping[str, bytes]) -> int:
    tokenizer = tokenizer_from_json(assets[TOKENIZER_JSON], max_length=512)
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _pad_token_id(assets: Mapping[str, bytes]) -> int | None:
    token = json.loads(assets[TOKENIZER_CONFIG_JSON]).get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    found: int | None = tokenizer_from_json(assets[TOKENIZER_JSON], max_length=512).token_to_id(text)
    return found


def _pad_id(config: PreTrainedConfig, assets: Mapping[str, bytes]) -> int:
    """The id the encoder itself takes for padding (RoBERTa counts positions by it), else the tokenizer's."""
    of_encoder = getattr(config, "pad_token_id", None)
    if isinstance(of_encoder, int) and of_encoder >= 0:
        return of_encoder
    return _pad_token_id(assets) or 0


def _with_inputs(tokenizer_config: bytes, type_ids: bool) -> bytes:
    """Say which inputs the model takes, so that an exported tokenizer makes those and no others."""
    settings = json.loads(tokenizer_config)
    settings["model_input_names"] = ["input_ids", *(["token_type_ids"] if type_ids else []), "attention_mask"]
    return json.dumps(settings, indent=1, sort_keys=True).encode()


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Run with torch's CPU stream at `seed` and leave it afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
