"""Generated pages are those that the code gives now."""

from __future__ import annotations

from scripts.write_docs import TARGET, configuration_page


def test_the_configuration_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == configuration_page(), "run `make docs`"


def test_every_section_is_described() -> None:
    page = configuration_page()
    for key in ("run", "server.limits", "federation.cohort", "model.encoder", "tasks.NAME", "tasks.NAME.data.sharding"):
        assert f"## `{key}`" in page
    assert "| `keep_versions` | whole number, at least 1 | `3` |" in page
