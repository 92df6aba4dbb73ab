"""What hypothesis draws for the tests of messages, frames, tensors and streams."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.messages import (
    Asset,
    Chunk,
    DataReport,
    Declined,
    EvaluationReport,
    Finished,
    GateReport,
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
from common.tensors import NUMPY_DTYPES, Array, EncodedTensor, encode_tensor

names = st.text(min_size=1, max_size=12)
texts = st.text(max_size=40)
finite = st.floats(allow_nan=False, allow_infinity=False)
gates = st.dictionaries(
    names,
    st.builds(GateReport, experts=st.just(("a", "b")), mass=st.just((0.25, 0.75)), entropy=st.just(0.5)),
    max_size=2,
)
measured = st.floats(-1e100, 1e100)
seconds = st.floats(min_value=0, max_value=1e9)
counts = st.integers(0, 2**53)
rounds = st.integers(0, 2**31 - 1)
u32 = st.integers(0, 2**32 - 1)
digests = st.text("0123456789abcdef", min_size=1, max_size=64)
sha256s = st.text("0123456789abcdef", min_size=64, max_size=64)
client_ids = st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
free = st.dictionaries(texts, json_values, max_size=3)


@st.composite
def arrays(draw: st.DrawFn, *, finite_only: bool = True) -> tuple[Array, str]:
    """An array of any shape and travelling type (bfloat16 as bit patterns), often with many zero rows."""
    dtype = draw(st.sampled_from(sorted(NUMPY_DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    if dtype == "bfloat16":
        # Below 0x7F80 all patterns are finite.
        elements: st.SearchStrategy[object] = st.integers(0, 0x7F7F if finite_only else 0xFFFF)
        array = draw(npst.arrays(np.uint16, shape, elements=elements))
    elif finite_only and NUMPY_DTYPES[dtype].kind == "f":
        width = 8 * NUMPY_DTYPES[dtype].itemsize
        elements = st.floats(allow_nan=False, allow_infinity=False, width=width)  # type: ignore[arg-type]
        array = draw(npst.arrays(NUMPY_DTYPES[dtype], shape, elements=elements))
    else:
        array = draw(npst.arrays(NUMPY_DTYPES[dtype], shape))
    if array.ndim >= 2 and array.shape[0]:
        zeroed = draw(st.lists(st.integers(0, array.shape[0] - 1), max_size=9))
        array[zeroed] = 0
    return array, dtype


@st.composite
def encoded(draw: st.DrawFn) -> list[EncodedTensor]:
    """The tensors of one stream."""
    drawn = draw(st.lists(arrays(), max_size=4))
    allow_rows = draw(st.booleans())
    return [
        encode_tensor(f"p{index}@t", array, allow_rows=allow_rows, dtype=dtype)
        for index, (array, dtype) in enumerate(drawn)
    ]


headers: st.SearchStrategy[tuple[TensorHeader, ...]] = encoded().map(
    lambda tensors: tuple(tensor.header for tensor in tensors)
)


def tasks_of(value: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(names, value, max_size=3)


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        protocol=st.lists(u32, min_size=1, max_size=3),
        client_id=client_ids,
        tasks=st.lists(names, max_size=3),
        token=st.none() | texts,
        sync=st.sampled_from(["slice", "full"]),
        encodings_up=st.lists(names, max_size=2),
        encodings_down=st.lists(names, max_size=2),
        assets=st.lists(sha256s, max_size=2),
        software=texts,
    ),
    st.builds(Ready, tasks=tasks_of(st.builds(DataReport, train=counts, validation=counts, source=texts))),
    st.builds(
        EvaluationReport,
        round=rounds,
        version=rounds,
        tasks=tasks_of(
            st.builds(
                TaskEvaluation, metrics=st.dictionaries(names, measured, max_size=3), loss=measured, examples=counts
            )
        ),
    ),
    st.builds(
        UpdateHeader,
        run_id=names,
        round=rounds,
        version=rounds,
        plan=digests,
        stream=u32,
        tasks=tasks_of(
            st.builds(
                TaskContribution, num_examples=counts, num_steps=counts, loss=finite, seconds=seconds, gates=gates
            )
        ),
        tensors=headers,
    ),
    st.builds(Declined, round=rounds, reason=texts),
    st.builds(Progress, round=rounds, done_steps=counts, total_steps=counts, loss=st.none() | finite),
    st.builds(Heartbeat, sequence=counts),
    st.builds(Goodbye, reason=texts),
    st.builds(
        Welcome,
        protocol=u32,
        run_id=names,
        client_id=client_ids,
        tasks=st.lists(names, max_size=3),
        seed=st.integers(0, 2**64 - 1),
        target_rounds=rounds,
        heartbeat_s=st.floats(0.01, 100),
        silence_s=st.floats(0.01, 100),
        chunk_bytes=st.integers(1, 2**20).map(lambda eighths: 8 * eighths),
        specs=st.dictionaries(names, free, max_size=2),
        family=free,
        assets=st.lists(st.builds(Asset, name=names, sha256=sha256s, nbytes=counts, stream=u32), max_size=2),
    ),
    st.builds(
        Work,
        run_id=names,
        round=rounds,
        version=rounds,
        target_rounds=rounds,
        plan=digests,
        slice=free,
        evaluate=st.booleans(),
        training=st.none() | free,
        deadline_s=st.none() | seconds,
        stream=u32,
        tensors=headers,
    ),
    st.builds(UpdateAck, round=rounds, version=rounds, update=digests, duplicate=st.booleans()),
    st.builds(RoundClosed, round=rounds, reason=texts),
    st.builds(Rejected, code=names, reason=texts, round=st.none() | rounds),
    st.builds(Refusal, code=names, reason=texts),
    st.builds(Finished, state=names, reason=texts, rounds_completed=rounds),
    st.builds(Chunk, stream=u32, tensor=u32, offset=st.integers(0, 2**64 - 1), data=st.binary(max_size=64)),
)
