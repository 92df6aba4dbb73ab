"""Turn one task of a trained federation into a folder that others load without fedmtl where possible.

Text tasks become a transformers model: a class of transformers itself where one computes exactly what
the federation computed, else a self-contained ``modeling_fedmtl.py`` in the folder. Tabular tasks
become safetensors with a JSON description, which `common.families.saved` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ConfigError
from common.families import family_from_description
from common.families.saved import DESCRIPTION_FILE, TASK_FILE, WEIGHTS_FILE, write_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from common.families.heads import HeadSpec
    from common.families.transformer_model import TransformerDescription
    from common.tasks import TaskSpec

README: Final = "README.md"
MODELING: Final = "modeling_fedmtl.py"


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        task: the task's name.
        folder: where it lies.
        model_class: the class that loads it.
        native: whether that class is part of transformers, so that no code of ours is needed.
        load_lines: the lines that load it, as the folder's README.md shows them.
        use_line: the line after them that gives a prediction.
        note: what the user must know, one sentence.
    """

    task: str
    folder: Path
    model_class: str
    native: bool
    load_lines: tuple[str, ...]
    use_line: str
    note: str


@dataclass(frozen=True)
class NativeForm:
    """How a class of transformers computes exactly our model.

    Attributes:
        encoder_prefix: what ``encoder.`` becomes.
        renames: our names without ``encoder.`` or ``heads.<task>.`` where the class has others; a key
            ends in a dot and stands for all names that start with it.
        settings: configuration the class needs for it.
    """

    encoder_prefix: str
    renames: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def name(self, ours: str, task: str) -> str:
        """The class's name of one of our parameters."""
        bare = ours.removeprefix(f"heads.{task}.")
        in_encoder = bare == ours
        bare = bare.removeprefix("encoder.")
        for old, new in self.renames.items():
            if bare.startswith(old) and in_encoder == old.startswith("pooler."):
                return new + bare.removeprefix(old)
        return f"{self.encoder_prefix}.{bare}"


def export_task(
    description: Mapping[str, Any],
    assets: Mapping[str, bytes],
    values: Mapping[str, Tensor],
    task: TaskSpec,
    out: Path,
) -> ExportReport:
    """Write one task's model into `out`.

    Predictions of what is loaded from there equal the federation's own to 1e-5. Low-rank adapters are merged into the
    weights they adapt.

    Args:
        description: of the family, from `Family.describe` or `common.families.saved.read_family`.
        assets: of the family, likewise.
        values: parameter name to float32 tensor, at least every parameter that the task uses.
        task: the task.
        out: folder to write; created, and overwritten if it is an earlier export.

    Raises:
        ConfigError: a parameter is missing or has the wrong shape, or `out` holds something else.
    """
    family = family_from_description(description, assets, {task.name: task})
    needed = family.blueprint().used_by(task.name)
    for spec in needed:
        found = tuple(values[spec.name].shape) if spec.name in values else None
        if found != spec.shape:
            raise ConfigError(f"export of {task.name!r}: parameter {spec.name!r} should be {spec.shape}, it is {found}")
    mine = {spec.name: values[spec.name].detach().cpu().to(torch.float32).contiguous() for spec in needed}
    if out.exists() and any(out.iterdir()) and not (out / TASK_FILE).is_file():
        raise ConfigError(f"--out {out}: the folder is not empty and no earlier export; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MODELING).unlink(missing_ok=True)
    report = (
        _export_text(description, assets, mine, task, out)
        if family.name == "transformer"
        else _export_rows(description, assets, mine, task, out)
    )
    (out / TASK_FILE).write_text(task.model_dump_json(indent=1), encoding="utf-8")
    (out / README).write_text(_readme(report, task), encoding="utf-8")
    return report


def _export_text(
    description: Mapping[str, Any], assets: Mapping[str, bytes], values: Mapping[str, Tensor], task: TaskSpec, out: Path
) -> ExportReport:
    from common.families.lora import merged
    from common.families.transformer_model import TransformerDescription, encoder_config

    parsed = TransformerDescription.model_validate(dict(description))
    if parsed.lora is not None:
        values, parsed = merged(values, parsed.lora, "encoder."), parsed.model_copy(update={"lora": None})
    for name, content in assets.items():
        (out / name).write_bytes(content)
    form = native_form(parsed, parsed.heads[task.name])
    if form is None:
        return _export_custom(parsed, values, task, out)
    config = encoder_config(parsed)
    for key, value in {**_label_settings(task), **form.settings}.items():
        setattr(config, key, value)
    renamed = {form.name(name, task.name): tensor for name, tensor in values.items()}
    model_class = _check_fits(config, renamed.keys())
    config.architectures = [model_class]
    config.save_pretrained(out)
    save_file(renamed, out / WEIGHTS_FILE, metadata={"format": "pt"})
    return ExportReport(
        task=task.name,
        folder=out,
        model_class=model_class,
        native=True,
        load_lines=_text_lines(out, trust=False),
        use_line=_classify_line(task),
        note=f"plain transformers loads it as {model_class}",
    )


def native_form(description: TransformerDescription, head: HeadSpec) -> NativeForm | None:
    """The class of transformers that is exactly this encoder, pooling and head; None when there is none."""
    if head.separate or description.experts is not None:
        return None  # all of them read a pair as one sequence, and none has experts
    settings = description.encoder
    width = settings.get("hidden_size", settings.get("dim"))
    linear_on_pooler = description.pooler and head.kind == "linear"
    mlp_on_first_token = (
        description.pooling == "cls" and not description.pooler and head.kind == "mlp" and head.hidden_size == width
    )
    match settings["model_type"]:
        case "bert" if linear_on_pooler:
            return NativeForm("bert", {"output.": "classifier."}, {"classifier_dropout": head.dropout})
        case "albert" if linear_on_pooler:
            return NativeForm("albert", {"output.": "classifier."}, {"classifier_dropout_prob": head.dropout})
        case "roberta" | "xlm-roberta" | "camembert" if linear_on_pooler:
            # RobertaClassificationHead is RobertaPooler (dense, tanh on the first token) and a linear layer.
            renames = {"pooler.dense.": "classifier.dense.", "output.": "classifier.out_proj."}
            return NativeForm("roberta", renames, {"classifier_dropout": head.dropout})
        case "distilbert" if mlp_on_first_token:
            renames = {"hidden.": "pre_classifier.", "output.": "classifier."}
            return NativeForm("distilbert", renames, {"seq_classif_dropout": head.dropout})
        case "deberta-v2" if mlp_on_first_token:
            renames = {"hidden.": "pooler.dense.", "output.": "classifier."}
            pooler = {"pooler_hidden_act": "relu", "pooler_hidden_size": width, "pooler_dropout": 0.0}
            return NativeForm("deberta", renames, {**pooler, "cls_dropout": head.dropout})
        case _:
            return None


def _label_settings(task: TaskSpec) -> dict[str, Any]:
    names = task.label_names or ("score",)
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if task.kind == "regression" else "single_label_classification",
        "dtype": "float32",
    }


def _check_fits(config: PreTrainedConfig, names: Any) -> str:  # noqa: ANN401
    """The name of the class that loads `config`, after a check that it has exactly these parameters."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    expected = {name for name, _ in model.named_parameters()}
    if expected != set(names):
        raise ConfigError(
            f"{type(model).__name__} of the installed transformers has other parameters than expected: "
            f"{sorted(expected ^ set(names))[:4]}; use the version in requirements.lock"
        )
    return type(model).__name__


def _export_custom(
    description: TransformerDescription, values: Mapping[str, Tensor], task: TaskSpec, out: Path
) -> ExportReport:
    from common.families.transformer_model import encoder_config, takes
    from server import exported_modeling

    head = description.heads[task.name]
    config = exported_modeling.FedmtlConfig(
        encoder_config=description.encoder,
        pooling=description.pooling,
        pooler=description.pooler,
        encoder_has_pooler=takes(encoder_config(description), "__init__", "add_pooling_layer"),
        token_type_ids=description.token_type_ids,
        head=head.kind,
        head_hidden_size=head.hidden_size,
        head_dropout=head.dropout,
        separate_pairs=head.separate,
        score_range=head.score_range or (0.0, 1.0),
        **_expert_settings(description),
        **_label_settings(task),
    )
    module = MODELING.removesuffix(".py")
    config.architectures = ["FedmtlForSequenceClassification"]
    config.auto_map = {
        "AutoConfig": f"{module}.FedmtlConfig",
        "AutoModelForSequenceClassification": f"{module}.FedmtlForSequenceClassification",
    }
    config.save_pretrained(out)
    renamed = {_name_in_custom(name, task.name): tensor for name, tensor in values.items() if ".noise." not in name}
    save_file(renamed, out / WEIGHTS_FILE, metadata={"format": "pt"})
    (out / MODELING).write_bytes(Path(exported_modeling.__file__).read_bytes())
    what = f"{description.pooling} pooling{' with pooler' if description.pooler else ''} and a {head.kind} head"
    if description.experts is not None:
        what += f" on a mixture of {description.experts.number} experts"
    what += " on pairs whose texts are read one by one" if head.separate else ""
    return ExportReport(
        task=task.name,
        folder=out,
        model_class="FedmtlForSequenceClassification",
        native=False,
        load_lines=_pair_lines(out) if head.separate else _text_lines(out, trust=True),
        use_line=_PAIR_USE if head.separate else _classify_line(task),
        note=(
            f"transformers has no class for {description.encoder['model_type']} with {what}, "
            f"so {MODELING} lies beside the weights and loading needs trust_remote_code=True"
        ),
    )


def _expert_settings(description: TransformerDescription) -> dict[str, Any]:
    experts = description.experts
    if experts is None:
        return {}
    return {
        "experts": experts.number,
        "expert_widths": experts.hidden,
        "expert_dropout": experts.dropout,
        "gate_bias": experts.gate.bias,
        "gate_top_k": experts.gate.top_k,
    }


def _name_in_custom(name: str, task: str) -> str:
    """What `exported_modeling` calls one of our parameters; an export has the gate and the head of one task."""
    for ours, theirs in ((f"heads.{task}.", "head."), (f"gate.{task}.", "mixture.gate."), ("gate.", "mixture.gate.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f"mixture.{name}" if name.startswith("experts.") else name


def _export_rows(
    description: Mapping[str, Any], assets: Mapping[str, bytes], values: Mapping[str, Tensor], task: TaskSpec, out: Path
) -> ExportReport:
    from common.families.tabular_family import MODELS

    write_family(description, assets, out)
    save_file(dict(values), out / WEIGHTS_FILE)
    _, model = MODELS[str(description["family"])]
    return ExportReport(
        task=task.name,
        folder=out,
        model_class=f"{model.__module__}.{model.__name__}",
        native=False,
        load_lines=(
            "from common.families.saved import load_saved_model",
            f'family, model = load_saved_model("{out.name}")',
            f'encoded = family.encode("{task.name}", examples)  # common.data.load_examples gives examples',
        ),
        use_line=f'logits = model("{task.name}", encoded.collate(range(len(encoded))))',
        note=f"transformers has no class for tabular rows; fedmtl loads {WEIGHTS_FILE} and {DESCRIPTION_FILE}",
    )


_PAIR_USE: Final = 'logits = model(**model.pair_inputs(tokenizer, ["one text"], ["another"])).logits'


def _text_lines(out: Path, *, trust: bool) -> tuple[str, ...]:
    code = ", trust_remote_code=True" if trust else ""
    return (
        "from transformers import AutoModelForSequenceClassification, pipeline",
        f'model = AutoModelForSequenceClassification.from_pretrained("{out.name}"{code})',
        f'classify = pipeline("text-classification", model="{out.name}"{code})',
    )


def _pair_lines(out: Path) -> tuple[str, ...]:
    """A pipeline would make one sequence of the two texts."""
    return (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        f'model = AutoModelForSequenceClassification.from_pretrained("{out.name}", trust_remote_code=True)',
        f'tokenizer = AutoTokenizer.from_pretrained("{out.name}", trust_remote_code=True)',
    )


def _classify_line(task: TaskSpec) -> str:
    example = '"a text"' if len(task.text) == 1 else '{"text": "one text", "text_pair": "another"}'
    return f"classify({example})"


def _readme(report: ExportReport, task: TaskSpec) -> str:
    lines = [
        f"# {task.name}",
        "",
        f"Exported from a fedmtl federation; {report.note}.",
        "",
        "```python",
        *report.load_lines,
        report.use_line,
        "```",
        "",
        f"The folder `{report.folder.name}` is meant relative to where you run this.",
    ]
    if task.text and task.kind == "regression":
        lines.append("The score is the model's output itself, on the scale of the training labels.")
    labels = ", ".join(f"{i} = {name}" for i, name in enumerate(task.label_names)) or "one score"
    return "\n".join([*lines, "", f"Outputs: {labels}.", ""])
