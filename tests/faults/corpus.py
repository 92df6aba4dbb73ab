"""One valid message of each type and then some: what the fuzzer starts from."""

from __future__ import annotations

import numpy as np

from common.messages import (
    Asset,
    Chunk,
    DataReport,
    Declined,
    EvaluationReport,
    Finished,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Progress,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    TaskContribution,
    TaskEvaluation,
    TensorHeader,
    UpdateAck,
    UpdateHeader,
    Welcome,
    Work,
)
from common.plan import SharingPlan
from common.tensors import encode_tensor
from common.training import TrainSettings
from tests.common.plan_strategies import glue_blueprint


def _headers() -> tuple[TensorHeader, ...]:
    sparse = np.zeros((50, 4), "<f4")
    sparse[[3, 17]] = 1.0
    arrays = {"a@t": np.ones((2, 3), "<f4"), "b@t": np.float64(1.0), "c@t": np.zeros((0, 2), "<i8")}
    return (
        *(encode_tensor(slot, np.asarray(array)).header for slot, array in arrays.items()),
        encode_tensor("d@t", sparse, allow_rows=True).header,
    )


def valid_messages() -> tuple[Message, ...]:
    """Small ones, all fields given."""
    done = TaskContribution(num_examples=640, num_steps=20, loss=0.5, seconds=1.5)
    measured = TaskEvaluation(metrics={"accuracy": 0.5, "f1": 0.25}, loss=0.7, examples=32)
    settings = TrainSettings().model_dump(mode="json")
    slice_ = SharingPlan.shared(glue_blueprint()).slice(["sst2"]).to_dict()
    return (
        Hello(
            protocol=(1,), client_id="sst2_client", tasks=("sst2",), token="t" * 40, assets=("a" * 64,), software="x"
        ),  # none
        Ready(tasks={"sst2": DataReport(train=640, validation=64, source="synthetic")}),
        EvaluationReport(round=3, version=2, tasks={"sst2": measured, "qqp": measured}),
        UpdateHeader(
            run_id="run-1", round=3, version=2, plan="0" * 16, stream=7, tasks={"sst2": done}, tensors=_headers()
        ),
        Declined(round=3, reason="out of memory"),
        Progress(round=3, done_steps=2, total_steps=20, loss=0.5),
        Heartbeat(sequence=5),
        Goodbye(reason="done"),
        Welcome(
            protocol=1,
            run_id="run-1",
            client_id="sst2_client",
            tasks=("sst2",),
            seed=7,
            target_rounds=10,
            heartbeat_s=1.0,
            silence_s=4.5,
            chunk_bytes=1 << 20,
            specs={"sst2": {"kind": "classification", "labels": 2, "metrics": ["accuracy"]}},
            family={"name": "transformer", "layers": [{"width": 16}]},
            assets=(Asset(name="tokenizer.json", sha256="b" * 64, nbytes=100, stream=1),),
        ),
        Work(
            run_id="run-1",
            round=3,
            version=2,
            target_rounds=10,
            plan="0" * 16,
            slice=slice_,
            evaluate=True,
            training=settings,
            deadline_s=60.0,
            stream=4,
            tensors=_headers(),
        ),
        UpdateAck(round=3, version=2, update="c" * 32, duplicate=True),
        RoundClosed(round=3, reason="the deadline passed"),
        Rejected(code="non_finite", reason="NaN", round=3),
        Refusal(code="busy", reason="full"),
        Finished(state="finished", reason="all rounds are done", rounds_completed=10),
        Chunk(stream=1, tensor=0, offset=64, data=bytes(range(64))),
    )
