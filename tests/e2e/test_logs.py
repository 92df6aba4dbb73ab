"""The log of a real client in JSON: every line is an object that knows client, run and round."""

from __future__ import annotations

import json

from tests.e2e.configs import small
from tests.e2e.programs import Programs


def test_every_line_of_a_clients_log_is_an_object_that_knows_what_it_is_about(programs: Programs) -> None:
    server = programs.server(small(["sst2"], run={"rounds": 1}, federation={"min_clients": 1}))
    client = programs.client(server, "sst2_client", "--log-format", "json")
    assert (client.wait(), server.wait()) == (0, 0)
    records = [json.loads(line) for line in client.log().splitlines()]
    assert all(record["client_id"] == "sst2_client" and record["level"] == "info" for record in records)
    run_id = server.summary()["run_id"]
    by_message = {record["message"]: record for record in records}
    # Said by the thread that loads data and model, by the task of a round, and at the end by the program.
    assert by_message["training on cpu"]["run_id"] == run_id
    sending = next(record for message, record in by_message.items() if message.startswith("round 1: sending"))
    assert (sending["run_id"], sending["round"]) == (run_id, 1)
    assert "run_id" not in records[-1]
    assert records[-1]["message"] == "the run is over after 1 rounds: all 1 rounds are done"
