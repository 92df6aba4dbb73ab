"""What the README tells a newcomer to type or write is accepted by the programs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

import client.__main__
import server.__main__
from common.failpoints import CLIENT_POINTS, SERVER_POINTS
from server.config import resolve_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
WITH_COMMANDS = ("README.md", "docs/operations.md", "docs/security.md", "docs/design/001-sharing-plan.md")
COMMANDS = [
    line
    for name in WITH_COMMANDS
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    if re.match(r"python -m (server|client) ", line)
]
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse_and_name_files_that_exist(line: str) -> None:
    module, *arguments = shlex.split(line, comments=True)[2:]
    app = {"server": server.__main__.app, "client": client.__main__.app}[module]
    command = typer.main.get_command(app)
    context = command.make_context(module, list(arguments))
    if context.params.get("config"):
        assert (ROOT / context.params["config"]).exists()
    while (commands := getattr(command, "commands", {})) and (named := [a for a in arguments if a in commands]):
        command, arguments = commands[named[0]], arguments[arguments.index(named[0]) + 1 :]
        context = command.make_context(named[0], list(arguments), parent=context)


def test_the_commands_are_really_looked_at() -> None:
    assert len(COMMANDS) >= 20
    assert any(" tokens add " in line for line in COMMANDS)


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_configurations_are_valid_and_as_short_as_promised(text: str) -> None:
    loaded = resolve_config(yaml.safe_load(text), "README.md", ROOT)
    assert "tickets" in loaded.specs
    assert len(text.splitlines()) <= 10


def test_make_targets_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z]+)", (ROOT / document).read_text()))
        assert named <= MAKE_TARGETS, document


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    folder = (ROOT / document).parent
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:common|server|client|configs|docs|docker|tests)/[\w./-]+?)/?`", text))
    missing = {link for link in links if not (folder / link).exists()} | {p for p in paths if not (ROOT / p).exists()}
    assert not missing


def test_the_failure_points_are_counted_right() -> None:
    """Wherever a document says how many there are."""
    said = f"at each of {len(SERVER_POINTS)} named points of a run's life and clients at each of {len(CLIENT_POINTS)}"
    assert said in " ".join(README.split())
    note = (ROOT / "docs/design/003-durable-rounds.md").read_text()
    assert f"kills at {len(SERVER_POINTS)} points of the server and {len(CLIENT_POINTS)} of the client" in note
