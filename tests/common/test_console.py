"""What the programs' log looks like, in a process of its own: logging is set up for the whole process."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def logged(code: str, *, exit_code: int = 0) -> str:
    """Standard error of a process that sets up logging and runs `code`."""
    program = "import logging, warnings\nfrom common.console import set_up_logging\n" + code
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    return done.stderr


def test_text_is_a_plain_line_for_people() -> None:
    text = logged("set_up_logging()\nlogging.getLogger('fedmtl.server').info('a %s', 'word', extra={'round': 1})")
    time, rest = text[:8], text[8:]
    datetime.strptime(time, "%H:%M:%S").replace(tzinfo=UTC)
    assert rest == " INFO    fedmtl.server  a word\n"


def test_json_is_one_object_per_line_whatever_the_message() -> None:
    text = logged(
        "from common.log_context import set_log_context\n"
        "set_up_logging(format='json')\n"
        "set_log_context(run_id='r', round=2)\n"
        "log = logging.getLogger('fedmtl.server')\n"
        r"log.info('plan\n%s', 'a | b\nc | d\r\n\u2028e')" + "\n"
        "log.warning('refused', extra={'client_id': 'sst2_x', 'code': 'busy', 'websocket': object()})\n"
        "logging.getLogger('uvicorn.error').error('theirs', extra={'color_message': 'red'})\n"
        "log.debug('not shown')\n"
    )
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        age = datetime.now(UTC) - datetime.fromisoformat(record["time"])
        assert timedelta(0) <= age < timedelta(minutes=5)
        assert record.pop("time")[-5:].endswith("Z")
    about = {"run_id": "r", "round": 2}
    assert records == [
        {"level": "info", "logger": "fedmtl.server", "message": "plan\na | b\nc | d\r\n\u2028e", **about},
        {"level": "warning", "logger": "fedmtl.server", "message": "refused", **about}
        | {"client_id": "sst2_x", "code": "busy"},
        {"level": "error", "logger": "uvicorn.error", "message": "theirs", **about},
    ]


def test_json_holds_tracebacks_warnings_and_what_nobody_caught() -> None:
    text = logged(
        "set_up_logging(verbose=True, format='json')\n"
        "log = logging.getLogger('fedmtl')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('it failed')\n"
        "warnings.warn('careful')\n"
        "raise KeyError('nobody')\n",
        exit_code=1,
    )
    failed, warned, ended = (json.loads(line) for line in text.splitlines())
    assert failed["message"] == "it failed"
    assert failed["exception"].splitlines()[0].startswith("Traceback")
    assert failed["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert (warned["logger"], warned["level"]) == ("py.warnings", "warning")
    assert "careful" in warned["message"]
    assert (ended["level"], ended["message"]) == ("critical", "ended by KeyError: 'nobody'")
    assert "KeyError" in ended["exception"]
