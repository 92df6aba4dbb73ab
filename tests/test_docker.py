"""The compose file and the image agree with the programs: each command line parses, each path and task exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main
import yaml

import client.__main__
import server.__main__
from server.config import LoadedConfig, load_config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
CLIENTS = [name for name in SERVICES if name != "server"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
HEALTH_URL = re.compile(r"http://127\.0\.0\.1:(\d+)/healthz")


def parsed(app: typer.Typer, arguments: list[str]) -> dict[str, Any]:
    """The options as the program itself reads them; a command line that it would refuse raises."""
    command = typer.main.get_command(app)
    return command.make_context("fedmtl", list(arguments), resilient_parsing=False).params


def server_config() -> LoadedConfig:
    options = parsed(server.__main__.app, SERVICES["server"]["command"])
    return load_config(ROOT / options["config"], options["overrides"])


def test_the_server_command_is_a_valid_configuration_that_listens_on_its_network() -> None:
    config = server_config().config
    assert config.server.host == "0.0.0.0"  # noqa: S104  # inside the compose network
    assert config.server.allow_anonymous
    assert config.federation.min_clients <= len(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_each_client_command_is_valid_and_its_tasks_are_configured(name: str) -> None:
    options = parsed(client.__main__.app, SERVICES[name]["command"])
    assert set(options["tasks"]) <= set(server_config().specs)
    url = urlsplit(options["server"])
    assert (url.scheme, url.hostname, url.port, url.path) == ("ws", "server", server_config().config.server.port, "/ws")
    assert SERVICES[name]["depends_on"] == {"server": {"condition": "service_healthy"}}


def test_every_task_has_a_client() -> None:
    tasks = {task for name in CLIENTS for task in parsed(client.__main__.app, SERVICES[name]["command"])["tasks"]}
    assert tasks == set(server_config().specs)


def test_health_checks_ask_the_port_that_is_served_and_published_on_loopback() -> None:
    port = server_config().config.server.port
    compose_check = " ".join(SERVICES["server"]["healthcheck"]["test"])
    for text in (compose_check, DOCKERFILE):
        assert HEALTH_URL.findall(text) == [str(port)]
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"EXPOSE {port}" in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_builds_a_stage_of_the_dockerfile_and_is_confined(name: str) -> None:
    service = SERVICES[name]
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert service["build"]["target"] in stages
    assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT.resolve()
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", CLIENTS)
def test_each_client_keeps_what_it_has_finished_in_a_volume_of_its_own(name: str) -> None:
    [folder] = re.findall(r"^ENV FEDMTL_STATE_DIR=(\S+)$", DOCKERFILE, re.MULTILINE)
    volume = f"{name}-state"
    assert SERVICES[name]["volumes"] == [f"{volume}:{folder}"]
    assert volume in COMPOSE["volumes"]
    assert f"VOLUME {folder}" in DOCKERFILE


def test_the_image_copies_what_exists_and_does_not_run_as_root() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists()
        assert {f"!{source}", f"!{source}/"} & set(ignored), f"{source} does not reach the builder"
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert not {"root", "0"} & {user.partition(":")[0] for user in users}


def test_the_image_pins_the_torch_of_the_lock() -> None:
    assert "grep '^torch==' requirements.lock" in DOCKERFILE
    assert re.search(r"^torch==2\.13\.0$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
