"""``make fuzz``: mutated input for everything that reads what a peer sent or a crash left.

What is fed and what counts as a crash stands in `tests/faults/fuzzing.py`; ``make test`` runs a short part of the same.
The last line is one JSON object; the exit code is 1 when anything crashed. An input that crashed is fed again by
``--only KIND NUMBER`` with the same ``--seed``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time

from tests.faults.fuzzing import fuzz, one


def main() -> int:
    """Fuzz as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=240_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="names the inputs")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"), help="one input again")
    given = parser.parse_args()
    logging.disable()
    if given.only:
        print(one(given.seed, given.only[0], int(given.only[1])))
        return 0
    began = time.perf_counter()
    outcome = fuzz(given.inputs, given.seed)
    for crash in outcome.crashes:
        print(f"--- {crash['kind']} {crash.get('number', '')}\n{crash['what']}")
    result = {
        "fuzz": "all",
        "seed": given.seed,
        "inputs": sum(outcome.inputs.values()),
        "seconds": round(time.perf_counter() - began, 1),
        "crashes": len(outcome.crashes),
        "grown_mib": round(outcome.grown_mib, 1),
        "by_kind": {
            kind: {"inputs": count, "taken": outcome.taken[kind], "slowest_s": round(outcome.slowest_s[kind], 4)}
            for kind, count in outcome.inputs.items()
        },
    }
    print(json.dumps(result))
    return 1 if outcome.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
