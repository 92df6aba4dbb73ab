"""`configs/census.yaml` on the real UCI files: both tasks are learnt well above the majority class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.data import load_examples
from common.families import build_family
from common.tasks import load_registry
from tests.common.families.tiny import config

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("FEDMTL_DATA", ROOT.parent / "shared" / "data"))
MAJORITY = {"income": 0.764, "marital_status": 0.666}


@pytest.mark.skipif(not (DATA / "census_income").is_dir(), reason=f"{DATA}/census_income is absent (set FEDMTL_DATA)")
def test_both_census_tasks_are_learnt_on_one_bottom() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "census.yaml").read_text(encoding="utf-8"))
    tasks = load_registry(settings["tasks"], "configs/census.yaml")
    family = build_family(config(**settings["model"]), tasks, base_dir=ROOT / "configs")
    model = family.build(list(tasks))
    model.load_state_dict(family.initial_values(1))
    rows = {
        task: family.encode(
            task, load_examples(tasks[task], "train", data=DATA, shard=None, seed=1, columns=family.feature_columns)
        )
        for task in tasks
    }
    held_out = np.arange(26_000, 32_561)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = np.random.default_rng(1)
    torch.manual_seed(1)  # dropout
    for _ in range(100):
        optimizer.zero_grad()
        for task in tasks:
            chosen = generator.integers(0, held_out[0], 256)
            logits = model(task, rows[task].collate(chosen))
            loss = torch.nn.functional.cross_entropy(logits, rows[task].labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    for task, majority in MAJORITY.items():
        predicted = model(task, rows[task].collate(held_out)).argmax(dim=1)
        assert float((predicted == rows[task].labels[held_out]).float().mean()) > majority + 0.04, task
