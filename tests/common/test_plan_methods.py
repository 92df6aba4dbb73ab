"""One test per row of the table in docs/design/001-sharing-plan.md: each method's plan can be said, and means that."""

from __future__ import annotations

from collections.abc import Iterable

from common.blueprint import Blueprint
from common.plan import SharingPlan
from tests.common.plan_strategies import glue_blueprint, spec

GLUE = frozenset({"sst2", "qqp", "stsb"})


def names_in(blueprint: Blueprint, group: str) -> list[str]:
    return [p.name for p in blueprint.parameters if p.group == group]


def ids(plan: SharingPlan, names: Iterable[str]) -> list[str]:
    return [slot.id for name in names for slot in plan.of(name)]


def groups_of(plan: SharingPlan, parameter: str) -> set[frozenset[str]]:
    return {slot.tasks for slot in plan.of(parameter)}


def test_mt_dnn_shares_the_encoder_and_gives_each_task_its_head() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    assert groups_of(plan, "encoder.layer.0.w0") == {GLUE}
    for task in GLUE:
        assert groups_of(plan, f"heads.{task}.weight") == {frozenset({task})}
    assert {slot.parameter for slot in plan.slice({"sst2"}).slots if slot.spec.group == "head"} == {
        "heads.sst2.weight",
        "heads.sst2.bias",
    }


def test_standard_fl_has_no_slot_of_two_tasks() -> None:
    plan = SharingPlan.separate(glue_blueprint())
    assert all(len(slot.tasks) == 1 for slot in plan.slots)
    assert not set(plan.slice({"sst2"}).slots) & set(plan.slice({"qqp"}).slots)


def test_fedper_keeps_heads_on_the_clients() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    plan = plan.reside([slot.id for slot in plan.slots if slot.spec.group == "head"], "client")
    slice_ = plan.slice({"sst2"})
    assert "heads.sst2.weight" not in {slot.parameter for slot in slice_.travelling}
    assert "heads.sst2.weight" in {slot.parameter for slot in slice_.trainable}
    assert "encoder.layer.0.w0" in {slot.parameter for slot in slice_.travelling}


def test_fedbn_keeps_norms_on_the_clients_across_layers() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    plan = plan.reside([slot.id for slot in plan.slots if "LayerNorm" in slot.parameter], "client")
    away = set(plan.slots) - set(plan.slice(GLUE).travelling)
    assert {slot.parameter for slot in away} == {f"encoder.layer.{n}.LayerNorm.weight" for n in (0, 1)}


def test_local_only_sends_nothing() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    plan = plan.reside([slot.id for slot in plan.slots], "client")
    assert plan.slice({"sst2"}).travelling == ()
    assert plan.slice({"sst2"}).trainable == plan.slice({"sst2"}).slots
    assert plan.origins(plan) == {}


def test_mas_splits_the_encoder_and_each_copy_starts_from_the_merged_value() -> None:
    blueprint = glue_blueprint()
    merged = SharingPlan.shared(blueprint)
    encoder = [p.name for p in blueprint.parameters if p.group != "head"]
    plan = merged
    for name in encoder:
        plan = plan.split(name, [{"sst2"}, {"qqp", "stsb"}])
    for name in encoder:
        assert groups_of(plan, name) == {frozenset({"sst2"}), frozenset({"qqp", "stsb"})}
    origins = plan.origins(merged)
    for slot in plan.slots:
        assert origins[slot.id] == {merged.of(slot.parameter)[0].id: 1.0}
    heads = names_in(blueprint, "head")
    assert ids(plan, heads) == ids(merged, heads)


def test_adaptive_sharing_splits_one_layer_and_merges_it_again() -> None:
    blueprint = glue_blueprint()
    start = SharingPlan.shared(blueprint)
    layer = names_in(blueprint, "layer.1")
    split = start
    for name in layer:
        split = split.split(name, [{"sst2"}, {"qqp"}, {"stsb"}])
    assert groups_of(split, "encoder.layer.0.w0") == {GLUE}
    partly = split
    for name in layer:
        partly = partly.merge(name, {"qqp", "stsb"})
    assert groups_of(partly, layer[0]) == {frozenset({"sst2"}), frozenset({"qqp", "stsb"})}
    assert partly.origins(split)[f"{layer[0]}@qqp+stsb"] == {f"{layer[0]}@qqp": 0.5, f"{layer[0]}@stsb": 0.5}
    for name in layer:
        partly = partly.merge(name)
    assert partly == start


def test_a_client_of_two_split_tasks_holds_both_copies_and_knows_which_is_whose() -> None:
    name = "encoder.layer.1.w0"
    plan = SharingPlan.shared(glue_blueprint()).split(name, [{"sst2"}, {"qqp", "stsb"}])
    slice_ = plan.slice({"sst2", "stsb"})
    assert slice_.slot_of("sst2", name).tasks == {"sst2"}
    assert slice_.slot_of("stsb", name).tasks == {"qqp", "stsb"}


def test_ifca_gives_each_variant_of_a_task_a_model_and_a_client_of_all_variants_all_models() -> None:
    variants = ("sst2-0", "sst2-1", "sst2-2")
    plan = SharingPlan.separate(glue_blueprint(" ".join(variants)))
    assert len(plan.slice(variants).slots) == len(plan.slots)
    assert all(slot.tasks == {"sst2-1"} for slot in plan.slice({"sst2-1"}).slots)


def test_tied_methods_find_one_slot_per_task_of_each_parameter() -> None:
    linear = Blueprint("linear", ("a", "b", "c"), (spec("w", "a b c", group="linear", shape=(9,)),))
    plan = SharingPlan.separate(linear)
    assert [slot.id for slot in plan.of("w")] == ["w@a", "w@b", "w@c"]
    assert len({slot.shape for slot in plan.of("w")}) == 1


def mixture_of_experts() -> Blueprint:
    shared = [spec(f"experts.{index}.weight", "income marital", group="experts") for index in range(3)]
    own = [
        spec(f"{part}.{task}.weight", task, group=part)
        for task in ("income", "marital")
        for part in ("experts_own", "gates", "towers")
    ]
    return Blueprint("ple", ("income", "marital"), (*shared, *own))


def test_ple_shares_experts_and_keeps_gates_towers_and_own_experts_apart() -> None:
    slice_ = SharingPlan.shared(mixture_of_experts()).slice({"income"})
    assert {slot.parameter for slot in slice_.slots} == {
        "experts.0.weight",
        "experts.1.weight",
        "experts.2.weight",
        "experts_own.income.weight",
        "gates.income.weight",
        "towers.income.weight",
    }
    assert {slot.id for slot in slice_.slots if len(slot.tasks) > 1} == {
        f"experts.{index}.weight@income+marital" for index in range(3)
    }


def cross_stitch(tasks: str) -> Blueprint:
    columns = [spec(f"columns.{task}.weight", tasks, group=f"column.{task}") for task in tasks.split()]
    units = [
        spec(f"stitch.0.{to}.{source}", tasks, group="stitch", shape=())
        for to in tasks.split()
        for source in tasks.split()
    ]
    heads = [spec(f"heads.{task}", task, group="head") for task in tasks.split()]
    return Blueprint("cross_stitch", tuple(tasks.split()), (*columns, *units, *heads))


def test_cross_stitch_puts_every_column_on_every_client_and_can_take_another_task() -> None:
    plan = SharingPlan.shared(cross_stitch("a b"))
    assert {slot.parameter for slot in plan.slice({"a"}).slots} >= {"columns.a.weight", "columns.b.weight"}
    grown = plan.grow(cross_stitch("a b c"))
    assert groups_of(grown, "stitch.0.a.b") == {frozenset("abc")}
    assert grown.origins(plan)["stitch.0.c.a@a+b+c"] == {}


def progressive() -> Blueprint:
    return Blueprint(
        "progressive",
        ("first", "second"),
        (
            spec("columns.first.weight", "first second", "first", group="column.first"),
            spec("columns.second.weight", "second", group="column.second"),
            spec("laterals.second.first.weight", "second", group="column.second"),
            spec("heads.first", "first", group="head"),
            spec("heads.second", "second", group="head"),
        ),
    )


def test_progressive_networks_read_earlier_columns_and_train_only_their_own() -> None:
    plan = SharingPlan.shared(progressive())
    second = plan.slice({"second"})
    assert "columns.first.weight" in second.for_task("second")
    assert {slot.parameter for slot in second.trainable} == {
        "columns.second.weight",
        "laterals.second.first.weight",
        "heads.second",
    }
    assert "columns.first.weight" in {slot.parameter for slot in plan.slice({"first"}).trainable}
    finished = plan.freeze(ids(plan, ["columns.first.weight", "heads.first"]))
    assert finished.slice({"first"}).trainable == ()


def lora() -> Blueprint:
    base = [spec(f"encoder.{n}.weight", "sst2 qqp", "", group=f"layer.{n}", shape=(8, 8)) for n in range(2)]
    down = [spec(f"encoder.{n}.lora_A", "sst2 qqp", group=f"layer.{n}", shape=(2, 8)) for n in range(2)]
    up = [spec(f"encoder.{n}.lora_B", "sst2 qqp", group=f"layer.{n}", shape=(8, 2)) for n in range(2)]
    heads = [spec(f"heads.{task}", task, group="head") for task in ("sst2", "qqp")]
    return Blueprint("lora", ("sst2", "qqp"), (*base, *down, *up, *heads))


def test_lora_never_trains_the_base_and_fedsa_keeps_b_on_the_clients() -> None:
    plan = SharingPlan.shared(lora())
    assert {slot.parameter for slot in plan.slice({"sst2"}).trainable} == {
        "encoder.0.lora_A",
        "encoder.1.lora_A",
        "encoder.0.lora_B",
        "encoder.1.lora_B",
        "heads.sst2",
    }
    fedsa = plan.reside(ids(plan, ["encoder.0.lora_B", "encoder.1.lora_B", "heads.sst2", "heads.qqp"]), "client")
    slice_ = fedsa.slice({"sst2"})
    assert {slot.parameter for slot in set(slice_.travelling) & set(slice_.trainable)} == {
        "encoder.0.lora_A",
        "encoder.1.lora_A",
    }


def test_adapters_can_be_split_under_a_shared_base() -> None:
    plan = SharingPlan.shared(lora())
    for n in range(2):
        plan = plan.split(f"encoder.{n}.lora_A", [{"sst2"}, {"qqp"}])
    assert groups_of(plan, "encoder.0.weight") == {frozenset({"sst2", "qqp"})}
    assert groups_of(plan, "encoder.0.lora_A") == {frozenset({"sst2"}), frozenset({"qqp"})}


def test_an_unfreezing_schedule_opens_groups_from_the_top() -> None:
    blueprint = glue_blueprint()
    plan = SharingPlan.shared(blueprint)
    body = [p.name for p in blueprint.parameters if p.group != "head"]
    phase1 = plan.freeze(ids(plan, body))
    assert {slot.spec.group for slot in phase1.slice(GLUE).trainable} == {"head"}
    phase2 = phase1.freeze(ids(phase1, names_in(blueprint, "layer.1")), frozen=False)
    assert {slot.spec.group for slot in phase2.slice(GLUE).trainable} == {"head", "layer.1"}
    assert phase2.freeze(ids(phase2, body), frozen=False) == plan


def test_a_task_that_joins_reads_the_shared_encoder_and_gets_a_head() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    grown = plan.grow(glue_blueprint("sst2 qqp stsb rte"))
    assert grown == SharingPlan.shared(glue_blueprint("sst2 qqp stsb rte"))
    origins = grown.origins(plan)
    assert origins["encoder.embeddings.weight@qqp+rte+sst2+stsb"] == {"encoder.embeddings.weight@qqp+sst2+stsb": 1.0}
    assert origins["heads.rte.weight@rte"] == {}
    assert origins["heads.sst2.weight@sst2"] == {"heads.sst2.weight@sst2": 1.0}


def test_different_encoders_share_what_they_have_in_common() -> None:
    blueprint = Blueprint(
        "mixed",
        ("small", "large"),
        (spec("layer.0.weight", "small large"), spec("layer.1.weight", "large", group="layer.1")),
    )
    plan = SharingPlan.shared(blueprint)
    assert [slot.id for slot in plan.slice({"small"}).slots] == ["layer.0.weight@large+small"]
    assert len(plan.slice({"large"}).slots) == 2
