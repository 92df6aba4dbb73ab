"""Random blueprints and plans for hypothesis, and one blueprint of known shape."""

from __future__ import annotations

from hypothesis import strategies as st

from common.blueprint import Blueprint, ParameterSpec
from common.plan import SharingPlan
from common.plan_data import Residence

TASKS = ("qqp", "sst2", "stsb", "rte", "cola")
GROUPS = ("embeddings", "layer.0", "layer.1", "head")


def spec(
    name: str, used_by: str, trained_by: str | None = None, *, group: str = "layer.0", shape: tuple[int, ...] = (2,)
) -> ParameterSpec:
    """A parameter with its tasks given as words (`trained_by` left out: all that use it)."""
    users = frozenset(used_by.split())
    trainers = users if trained_by is None else frozenset(trained_by.split())
    return ParameterSpec(name, shape, "float32", users, trainers, group)


def glue_blueprint(tasks: str = "sst2 qqp stsb", layers: int = 2, per_layer: int = 4) -> Blueprint:
    """An encoder in the shape of the transformer family, with a head per task."""
    parameters = [spec("encoder.embeddings.weight", tasks, group="embeddings", shape=(10, 4))]
    parameters += [
        spec(f"encoder.layer.{layer}.{part}", tasks, group=f"layer.{layer}", shape=(4, 4))
        for layer in range(layers)
        for part in [f"w{index}" for index in range(per_layer - 1)] + ["LayerNorm.weight"]
    ]
    for task in tasks.split():
        parameters += [
            spec(f"heads.{task}.weight", task, group="head", shape=(2, 4)),
            spec(f"heads.{task}.bias", task, group="head", shape=(2,)),
        ]
    return Blueprint("transformer", tuple(tasks.split()), tuple(parameters))


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    """A family with random uses and trains; every task has a head, as in all our families."""
    tasks = draw(st.lists(st.sampled_from(TASKS), min_size=1, max_size=4, unique=True))
    subsets = st.frozensets(st.sampled_from(tasks), min_size=1)
    parameters = []
    for index in range(draw(st.integers(0, 5))):
        used_by = draw(subsets)
        trained_by = draw(st.frozensets(st.sampled_from(sorted(used_by))))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        group = draw(st.sampled_from(GROUPS))
        kind = draw(st.sampled_from(["parameter", "buffer"]))
        parameters.append(
            ParameterSpec(
                f"p{index}.weight", shape, draw(st.sampled_from(["float32", "bfloat16"])), used_by, trained_by, group,
                kind,  # type: ignore[arg-type]  # drawn from its two values
            )
        )  # fmt: skip
    parameters += [spec(f"heads.{task}", task, group="head") for task in tasks]
    return Blueprint("random", tuple(tasks), tuple(draw(st.permutations(parameters))))


def partitions(members: frozenset[str]) -> st.SearchStrategy[list[frozenset[str]]]:
    """Random partitions of a set, all blocks non-empty."""
    ordered = sorted(members)

    def blocks(labels: list[int]) -> list[frozenset[str]]:
        return [
            frozenset(m for m, label in zip(ordered, labels, strict=True) if label == block) for block in set(labels)
        ]

    labels = st.lists(st.integers(0, len(ordered) - 1), min_size=len(ordered), max_size=len(ordered))
    return labels.map(blocks)


@st.composite
def plans(draw: st.DrawFn, of: Blueprint | None = None) -> SharingPlan:
    """A blueprint partitioned, frozen and moved at random, by the plan's own operations."""
    blueprint = draw(blueprints()) if of is None else of
    plan = SharingPlan.shared(blueprint)
    for parameter in blueprint.parameters:
        plan = plan.split(parameter.name, draw(partitions(parameter.used_by)))
    ids = [slot.id for slot in plan.slots]
    residences: st.SearchStrategy[Residence] = st.sampled_from(["server", "client"])
    plan = plan.freeze(draw(st.lists(st.sampled_from(ids), unique=True)))
    return plan.reside(draw(st.lists(st.sampled_from(ids), unique=True, max_size=3)), draw(residences))
