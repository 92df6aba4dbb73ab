"""docs/families.md: what it shows works as it stands, and every family is in its table."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from common.families.tabular_family import MODELS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "families.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first block of code in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, language
    return found[1]


def loans(rows: int, seed: int) -> str:
    """A table such as the page speaks of: the older owe less, and are less often in default."""
    rng = random.Random(seed)  # noqa: S311  # rows of a test
    lines = ["customer,amount,age,income,housing,defaulted,credit_limit"]
    for number in range(rows):
        age, income, housing = rng.randint(18, 80), rng.gauss(40, 12), rng.choice(["own", "rent", "?"])
        defaulted = "yes" if rng.random() < 1 / (1 + 2.718 ** (0.1 * (age - 40))) else "no"
        lines.append(f"c{number},{rng.uniform(1, 9):.2f},{age},{income:.1f},{housing},{defaulted},{income / 10:.2f}")
    return "\n".join(lines) + "\n"


def test_the_ten_lines_train_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loans.yaml").write_text(block("yaml"))
    (tmp_path / "loans.csv").write_text(loans(2000, 1))
    (tmp_path / "loans-test.csv").write_text(loans(200, 2))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    code = block("python")
    assert len([line for line in code.splitlines() if line]) <= 10
    # Fewer rows than a real table has make fewer steps, so they are smaller ones here.
    exec(code.replace("batch_size=512", "batch_size=32, threads=1"), found)  # noqa: S102  # the page's own code
    tasks = found["trained"].history[-1]["tasks"]
    assert tasks["default"]["auc"] > 0.7, "age tells who defaults, with an AUC of about 0.85"
    assert found["trained"].family.feature_columns == ("age", "income", "housing")


@pytest.mark.parametrize("family", MODELS)
def test_every_family_is_in_the_table(family: str) -> None:
    assert f"\n| `{family}` |" in PAGE
