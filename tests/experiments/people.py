"""A tiny tabular problem: people of whom income and marital status are to be told, in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from experiments.problems import Problem, load_problem

EDUCATION: Final = ("school", "college", "doctorate")
YAML: Final = """
tasks:
  income: {label: income, labels: [low, high]}
  marital: {label: marital, labels: {never: "n", married: "y"}}
files: {train: train.csv, validation: valid.csv, test: test.csv}
numeric: {age: {mean: 45, std: 15}}
categorical: {work: [office, field, none]}
leave_out: [education]
"""


def write_people(folder: Path, rows: int = 120) -> Path:
    """Write the problem's files into a folder; returns its YAML file."""
    rng = np.random.default_rng(5)
    for name, count in (("train", rows), ("valid", rows // 2), ("test", rows // 2)):
        lines = ["age,work,education,income,marital"]
        for _ in range(count):
            age, work = int(rng.integers(18, 80)), rng.choice(["office", "field", "?"])
            income = "high" if age + 20 * (work == "office") + rng.normal(0, 5) > 55 else "low"
            married = "y" if age + rng.normal(0, 5) > 40 else "n"
            lines.append(f"{age},{work},{EDUCATION[len(lines) % 3]},{income},{married}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    path = folder / "people.yaml"
    path.write_text(YAML)
    return path


def people(folder: Path, rows: int = 120) -> Problem:
    """The problem, its files written into a folder."""
    return load_problem(str(write_people(folder, rows)), None)
