from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALL = "from client.openmp import let_idle_threads_sleep; let_idle_threads_sleep(); import os; print(os.environ['{}'])"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_idle_threads_sleep_unless_the_user_chose() -> None:
    code = CALL.format("OMP_WAIT_POLICY")
    assert run(code).stdout.strip() == "PASSIVE"
    assert run(code, OMP_WAIT_POLICY="ACTIVE").stdout.strip() == "ACTIVE"


def test_it_is_an_error_after_torch_has_read_the_setting() -> None:
    done = run("import sys; sys.modules['torch'] = sys; " + CALL.format("OMP_WAIT_POLICY"))
    assert done.returncode == 1
    assert "before torch is imported" in done.stderr
