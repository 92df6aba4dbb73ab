"""How fast tensors move through the server: encode, chunk, receive, checksum, spool and aggregate.

Run it with nothing else on the machine::

    python -m benchmarks.tensor_path [--parameters 4385920] [--clients 3] [--repeats 9]

What is measured is a model of one embedding table (nine tenths of the parameters, as in bert-tiny) and 38
smaller tensors. Each figure is GB/s of tensor payload (10^9 bytes, float32), from the median of the repeats,
beside what the machine itself can do in the same run: ``machine_copy`` is numpy copying an array of that
size, ``machine_axpy`` is torch's in-place ``y.add_(x, alpha=a)``, counted in bytes of x.

* ``encode``: tensors to headers and views, checksum included; ``encode_views`` the same without the checksum.
* ``frames``: views to chunk frames, as sent (the one copy, and each frame's checksum).
* ``decode_frames``: frames to chunks, as received, each frame's checksum checked.
* ``receive``: chunks into memory: order, tensor checksum and finite numbers checked, one copy into fresh memory.
* ``decode``: a received payload to a tensor (a view).
* ``checksum``: XXH3-64 alone.
* ``spool``: chunks into the page cache (no fsync).
* ``aggregate``: bytes of deltas folded per second into one new value, `clients` deltas in memory;
  ``aggregate_spool`` with the deltas read from the spool; ``aggregate_rows`` counts dense bytes where only
  5 % of the embedding's rows are present.
* ``safetensors_*`` and ``pickle_*``: the same tensors through these, in memory. pickle is measured because
  frameworks in the field use it; fedmtl does not.

``aggregate_of_axpy`` is aggregate / machine_axpy; the wish is 0.6. Sums are kept in float64, the axpy in float32.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import pickle  # the thing compared with, on our own bytes
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.messages import Chunk, UpdateHeader
from common.stream import DEFAULT_CHUNK_BYTES, MemorySink, StreamReceiver, chunk_frames
from common.tensors import EncodedTensor, encode_tensor, payload_checksum
from common.torch_tensors import decode, encode
from common.wire import decode_frame
from server.aggregation import DenseDelta, SlotUpdate, WeightedSum
from server.spool import SpooledUpdate, SpoolWriter

WIDTH = 128
SMALL = 38


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=4_385_920)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(7)
    model = make_model(arguments.parameters)
    seconds = measure(model, arguments.clients, arguments.repeats)
    nbytes = sum(tensor.nbytes for tensor in model.values())
    folded = {name: nbytes * arguments.clients for name in seconds if name.startswith("aggregate")}
    rates = {name: round(folded.get(name, nbytes) / 1e9 / spent, 2) for name, spent in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<22}{rate:>9.2f} GB/s {1e3 * seconds[name]:>9.3f} ms")
    result = {
        "benchmark": "tensor_path",
        "settings": vars(arguments) | {"tensors": len(model), "bytes": nbytes, "chunk_bytes": DEFAULT_CHUNK_BYTES},
        "gb_per_s": rates,
        "aggregate_of_axpy": round(rates["aggregate"] / rates["machine_axpy"], 2),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    print(json.dumps(result))


def make_model(parameters: int) -> dict[str, Tensor]:
    """One table with nine tenths of the parameters, the rest in small tensors, half of them tiny."""
    table = int(parameters * 0.9) // WIDTH
    rest = (parameters - table * WIDTH) // (SMALL // 2) - WIDTH
    model = {"embedding@a+b+c": torch.randn(table, WIDTH)}
    for index in range(SMALL // 2):
        model[f"layer.{index}.weight@a+b+c"] = torch.randn(max(1, rest // WIDTH), WIDTH)
        model[f"layer.{index}.bias@a+b+c"] = torch.randn(WIDTH)
    return model


def measure(model: dict[str, Tensor], clients: int, repeats: int) -> dict[str, float]:
    """Name to median seconds."""
    tensors = [encode(slot, tensor) for slot, tensor in model.items()]
    seconds = machine(sum(tensor.nbytes for tensor in model.values()), repeats)
    seconds |= wire(model, tensors, repeats)
    with tempfile.TemporaryDirectory() as folder:
        seconds |= spool_and_aggregate(Path(folder), model, tensors, clients, repeats)
    return seconds | others(model, repeats)


def machine(nbytes: int, repeats: int) -> dict[str, float]:
    """What the machine does with flat float32 arrays of this size."""
    x, y = torch.randn(nbytes // 4), torch.randn(nbytes // 4)
    source, target = x.numpy(), y.numpy()
    return {
        "machine_copy": median(repeats, lambda: np.copyto(target, source)),
        "machine_axpy": median(repeats, lambda: y.add_(x, alpha=1e-9)),
    }


def wire(model: dict[str, Tensor], tensors: list[EncodedTensor], repeats: int) -> dict[str, float]:
    """Encode, frame, receive, decode."""
    headers = [tensor.header for tensor in tensors]
    frames = list(chunk_frames(1, tensors, DEFAULT_CHUNK_BYTES))
    chunks = [chunk for chunk in map(decode_frame, frames) if isinstance(chunk, Chunk)]
    payloads = [bytearray(b"".join(tensor.parts)) for tensor in tensors]

    def receive() -> None:
        receiver = StreamReceiver(1, headers, MemorySink(headers))
        for chunk in chunks:
            receiver.accept(chunk)
        if not receiver.complete:
            raise RuntimeError("the stream is not complete")

    def count(produced: Sequence[object] | Any) -> int:  # noqa: ANN401  # an iterator of anything
        return sum(1 for _ in produced)

    arrays = {slot: tensor.numpy() for slot, tensor in model.items()}
    return {
        "encode": median(repeats, lambda: [encode(slot, tensor) for slot, tensor in model.items()]),
        "encode_views": median(repeats, lambda: [array.reshape(-1).view(np.uint8).data for array in arrays.values()]),
        "frames": median(repeats, lambda: count(chunk_frames(1, tensors, DEFAULT_CHUNK_BYTES))),
        "decode_frames": median(repeats, lambda: [decode_frame(frame) for frame in frames]),
        "receive": median(repeats, receive),
        "decode": median(repeats, lambda: [decode(h, p) for h, p in zip(headers, payloads, strict=True)]),
        "checksum": median(repeats, lambda: [payload_checksum(tensor.parts) for tensor in tensors]),
        "encode_rows": median(
            repeats, lambda: [encode_tensor(slot, array, allow_rows=True) for slot, array in arrays.items()]
        ),
    }


def spool_and_aggregate(
    folder: Path, model: dict[str, Tensor], tensors: list[EncodedTensor], clients: int, repeats: int
) -> dict[str, float]:
    """Write updates as they arrive, then fold them from memory and from the spool."""
    weights = [1 / clients] * clients
    deltas = [{slot: 1e-3 * torch.randn_like(value) for slot, value in model.items()} for _ in weights]
    sparse = [{slot: keep_rows(delta, 0.05) for slot, delta in one.items()} for one in deltas]
    dense_updates = [spooled(folder / "dense", f"c{k:03}", one) for k, one in enumerate(deltas)]
    row_updates = [spooled(folder / "rows", f"c{k:03}", one) for k, one in enumerate(sparse)]
    aggregator = WeightedSum()

    def fold(delta_of: Callable[[int, str], Any]) -> None:
        for slot, value in model.items():
            aggregator.reduce(value, [SlotUpdate(f"c{k:03}", w, 1, delta_of(k, slot)) for k, w in enumerate(weights)])

    header = header_of(tensors)

    def spool() -> None:
        writer = SpoolWriter(folder / "again", header, "c")
        for index, tensor in enumerate(tensors):
            writer.write(index, 0, tensor.parts[0])
        writer.abandon()

    seconds = {
        "spool": median(repeats, spool),
        "aggregate": median(repeats, lambda: fold(lambda k, slot: DenseDelta.of(deltas[k][slot]))),
        "aggregate_spool": median(repeats, lambda: fold(lambda k, slot: dense_updates[k].delta(slot))),
        "aggregate_rows": median(repeats, lambda: fold(lambda k, slot: row_updates[k].delta(slot))),
    }
    for update in (*dense_updates, *row_updates):
        update.close()
    return seconds


def keep_rows(delta: Tensor, part: float) -> Tensor:
    """The delta with all but the first part of a large table's rows set to zero."""
    if len(delta) < 1000:
        return delta
    kept = torch.zeros_like(delta)
    count = int(part * len(delta))
    kept[:: len(delta) // count] = delta[:: len(delta) // count]
    return kept


def header_of(tensors: list[EncodedTensor]) -> UpdateHeader:
    """An update's header around these tensors."""
    headers = tuple(tensor.header for tensor in tensors)
    return UpdateHeader(run_id="run", round=1, version=0, plan="0", stream=1, tasks={}, tensors=headers)


def spooled(directory: Path, client_id: str, deltas: dict[str, Tensor]) -> SpooledUpdate:
    """An open update on disk."""
    tensors = [encode(slot, delta, allow_rows=True) for slot, delta in deltas.items()]
    header = header_of(tensors)
    writer = SpoolWriter(directory, header, client_id)
    receiver = StreamReceiver(1, header.tensors, writer)
    for frame in chunk_frames(1, tensors, DEFAULT_CHUNK_BYTES):
        chunk = decode_frame(frame)
        if isinstance(chunk, Chunk):
            receiver.accept(chunk)
    update = writer.commit()
    update.open()
    return update


def others(model: dict[str, Tensor], repeats: int) -> dict[str, float]:
    """The same tensors through safetensors and pickle."""
    stored = safetensors.torch.save(model)
    arrays = {slot: tensor.numpy() for slot, tensor in model.items()}
    pickled = pickle.dumps(arrays, protocol=5)
    return {
        "safetensors_encode": median(repeats, lambda: safetensors.torch.save(model)),
        "safetensors_decode": median(repeats, lambda: safetensors.torch.load(stored)),
        "pickle_encode": median(repeats, lambda: pickle.dumps(arrays, protocol=5)),
        "pickle_decode": median(repeats, lambda: pickle.loads(pickled)),  # noqa: S301  # our own bytes
    }


def median(repeats: int, step: Callable[[], object]) -> float:
    """Median seconds of `repeats` runs after one that does not count."""
    step()
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
