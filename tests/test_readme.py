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
from server.config import resolve_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for text in (README, (ROOT / "docs/design/001-sharing-plan.md").read_text())
    for line in text.splitlines()
    if line.startswith("python -m ")
]
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse_and_name_files_that_exist(line: str) -> None:
    module, *arguments = shlex.split(line)[2:]
    app = {"server": server.__main__.app, "client": client.__main__.app}[module]
    command = typer.main.get_command(app)
    context = command.make_context(module, list(arguments))
    if context.params.get("config"):
        assert (ROOT / context.params["config"]).exists()
    for subcommand in getattr(command, "commands", {}).keys() & set(arguments):
        rest = arguments[arguments.index(subcommand) + 1 :]
        command.commands[subcommand].make_context(subcommand, rest, parent=context)  # type: ignore[attr-defined]  # a group


def test_the_commands_are_really_looked_at() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_configurations_are_valid_and_as_short_as_promised(text: str) -> None:
    loaded = resolve_config(yaml.safe_load(text), "README.md", ROOT)
    assert "tickets" in loaded.specs
    assert len(text.splitlines()) <= 10


def test_make_targets_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z]+)", (ROOT / document).read_text()))
        assert named <= MAKE_TARGETS, document


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:common|server|client|configs|docs|docker|tests)/[\w./-]+?)/?`", text))
    missing = {path for path in links | paths if not (ROOT / path).exists()}
    assert not missing
