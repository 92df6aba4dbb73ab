"""The command lines as a user types them: ready line, exit codes, messages, export of what came out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from common.data import load_examples
from common.families import family_from_description
from common.families.saved import read_family
from common.tasks import load_registry
from server.run_directory import load_version
from tests.e2e.configs import small
from tests.e2e.programs import Programs

UNREACHABLE = "ws://127.0.0.1:9/ws"


def test_a_run_by_command_and_the_export_of_its_model(commands: Programs) -> None:
    """``python -m server``, ``python -m client`` twice, ``python -m server export``, transformers."""
    config = small(["sst2", "stsb"], run={"rounds": 1}, federation={"min_clients": 2})
    server = commands.server(config, "--set", "run.rounds=2", run_dir=commands.folder / "run")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
    assert server.run_dir == (commands.folder / "run").resolve()
    clients = [commands.client(server, "sst2_client"), commands.client(server, "second", "--tasks", "stsb")]
    assert [client.wait() for client in clients] == [0, 0]
    assert server.wait() == 0
    assert server.line() == "", "standard output holds the ready line only"
    assert "sst2: 64 training, 32 validation examples, synthetic" in clients[0].log()
    assert "the run is over after 2 rounds" in clients[1].log()
    assert server.summary()["rounds_completed"] == 2

    out = commands.folder / "exported"
    export = commands.command("server", "export", "--run", str(server.run_dir), "--task", "sst2", "--out", str(out))
    assert export.wait() == 0, export.log()
    _assert_same_predictions(server.run_dir, "sst2", out)


def _assert_same_predictions(run_dir: Path, task: str, out: Path) -> None:
    """The exported model gives the federation's own outputs to 1e-5."""
    import yaml

    specs = load_registry(yaml.safe_load((run_dir / "config.yaml").read_text())["tasks"], "config.yaml")
    family = family_from_description(*read_family(run_dir / "family"), specs)
    ours = family.build([task]).eval()
    values = load_version(run_dir / "model" / "round-00002.safetensors").for_task(task)
    missing, unexpected = ours.load_state_dict(values, strict=False)
    assert not unexpected
    assert all("position_ids" in name or "token_type" in name for name in missing), missing
    examples = load_examples(specs[task], "validation", data=None, shard=None, seed=0)
    rows = family.encode(task, examples)

    theirs = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    texts = list(examples.columns["sentence"])
    with torch.no_grad():
        expected = ours(task, rows.collate(np.arange(len(rows))))
        found = theirs(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot read"]),
        ([], ["--config"]),
        (["--set", "run.round=5"], ["run.round", "unknown key"]),
        (["--set", "run.rounds=none"], ["run.rounds", "'none'"]),
        (["--set", "run.rounds"], ["run.rounds", "key.path=value"]),
        (["--set", "server.host=0.0.0.0"], ["server", "allow_anonymous"]),
        (["--set", "tasks.sst2.use=sst3"], ["tasks.sst2.use", "sst3", "glue/sst2"]),
        (["--set", "federation.task_weights={sst2: 1.0}"], ["federation.task_weights", "qqp"]),
        (["--set", "model.encoder.config.hidden_size=17"], ["hidden"]),
        (["--resume"], ["no run to resume"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_server_with_a_bad_configuration_ends_with_2_and_says_what_is_wrong(
    programs: Programs, arguments: list[str], told: list[str]
) -> None:
    words = arguments
    if arguments[:1] in (["--set"], ["--resume"]):
        words = ["--config", str(programs.write_config(small())), *arguments]
    server = programs.command("server", *words, "--run-dir", str(programs.folder / "run"))
    assert server.wait() == 2, server.log()
    assert server.line() == ""
    for words_told in told:
        assert words_told in server.log()
    assert "Traceback" not in server.log()
    assert not (programs.folder / "run" / "run.db").exists()


def test_a_busy_port_is_told_at_once(programs: Programs) -> None:
    server = programs.server(small())
    port = server.url.rpartition(":")[2]
    second = programs.server(small(server={"port": int(port)}), run_dir=programs.folder / "other", ready=False)
    assert second.wait() == 2
    assert "cannot listen" in second.log()
    assert port in second.log()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--client-id", "sst2", "--server", UNREACHABLE, "--reconnect-for", "1"], 3, "could not be reached for 1 s"),
        (["--client-id", "a b", "--server", UNREACHABLE], 2, "--client-id 'a b'"),
        (["--client-id", "a", "--server", UNREACHABLE, "--reconnect-for", "0"], 3, "could not be reached for 0 s"),
        (["--client-id", "a", "--server", "http://x"], 2, "expected ws://"),
        (["--client-id", "a", "--server", "ws://x:99999/ws"], 2, "expected ws://"),
        (["--client-id", "a", "--server", UNREACHABLE, "--ca", "ca.pem"], 2, "there is no TLS over ws://"),
        (["--client-id", "a", "--server", "wss://x/ws", "--ca", "nowhere.pem"], 2, "--ca nowhere.pem: No such file"),
        (["--client-id", "a", "--server", "wss://x/ws", "--cert", "c.pem"], 2, "--cert and --key go together"),
        (["--client-id", "a", "--token-file", "nowhere"], 2, "--token-file nowhere can't be read"),
        (["--client-id", "a", "--token", "t", "--token-file", "nowhere"], 2, "not both"),
        (["--client-id", "a", "--state-dir", "/dev/null"], 2, "the state folder /dev/null/a can't be made"),
        (["--client-id", "a", "--data", "nowhere"], 2, "--data nowhere"),
        (["--client-id", "a", "--shard", "3/3"], 2, "3/3"),
        (["--client-id", "a", "--device", "abacus"], 2, "abacus"),
        (["--server", UNREACHABLE], 2, "--client-id"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_client_that_cannot_begin_says_why(programs: Programs, arguments: list[str], code: int, told: str) -> None:
    client = programs.command("client", *arguments)
    assert client.wait() == code, client.log()
    assert told in client.log()
    assert "Traceback" not in client.log()


def test_whom_the_server_lets_in(programs: Programs) -> None:
    """Tasks by name, by client id or refused with the list of tasks; one connection per client id."""
    server = programs.server(small(["sst2", "qqp"], federation={"min_clients": 2}))
    unknown = programs.client(server, "third", "--tasks", "mnli", "qqp")
    nameless = programs.client(server, "third")
    both = programs.client(server, "sst2_qqp")
    for client in (unknown, nameless, both):
        assert client.wait() == 2, client.log()
        assert "this run has: qqp, sst2" in client.log()
    first = programs.client(server, "my.sst2-client")
    while "joined" not in server.log():
        assert first.running, first.log()
    twin = programs.client(server, "my.sst2-client")
    assert twin.wait() == 4
    assert "duplicate_client" in twin.log()
    second = programs.client(server, "second", "--tasks", "qqp,sst2")
    assert [first.wait(), second.wait(), server.wait()] == [0, 0, 0]
    history = server.summary()["history"]
    assert history[-1]["participants"] == ["my.sst2-client", "second"]
    assert json.dumps(history)
