"""Limits of other processes: a busy machine gets more, what hangs ends, and takes nothing along."""

import sys

import pytest
from surf.tests import patience
from surf.tests.host.outcome import ScriptOutcome

HANG = """
import sys, time
from pathlib import Path
print("before", flush=True)
Path(sys.argv[1]).write_text("reached")
time.sleep(3600)
"""


def written(path):
    return path.exists() and path.stat().st_size > 0


@pytest.fixture
def ends_when(monkeypatch):
    """Let every patience end as soon as a file is written, however fast the machine is."""

    def until(path):
        monkeypatch.setattr(patience, "SLICE", 0.05)
        monkeypatch.setattr(patience.Patience, "lasts", lambda _: not written(path))

    return until


def test_what_ends_in_time_is_returned_as_it_is():
    done = patience.run([sys.executable, "-c", "import sys; print(1); sys.exit(3)"], 600)
    assert (done.returncode, done.stdout, done.stderr) == (3, "1\n", "")


def test_what_hangs_is_ended_and_its_last_words_are_told(ends_when, tmp_path):
    ends_when(tmp_path / "reached")
    with pytest.raises(TimeoutError, match="longer than 3 s of an idle machine: before"):
        patience.run([sys.executable, "-c", HANG, str(tmp_path / "reached")], 3)


def test_a_busy_machine_gets_as_much_longer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "load", lambda: 10.0)
    limit = patience.Patience(3)
    now[0] = 29
    assert limit.lasts()
    monkeypatch.setattr(patience, "load", lambda: 1.0)
    now[0] = 29.2
    assert not limit.lasts()


CASES = """
import json, sys, time
from pathlib import Path

out = Path(sys.argv[1])
out.write_text(json.dumps({"case_a": "", "case_b": "Traceback"}))
END
"""


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("time.sleep(3600)", "not reached; the script took too long"),
        ("import os; os.abort()", "not reached; the script ended with status -6"),
        ("sys.exit('no memory')", "not reached; the script ended with status 1:\nno memory"),
    ],
)
def test_a_script_that_ends_early_keeps_the_cases_that_it_had(
    end, reason, ends_when, tmp_path, monkeypatch
):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    if "sleep" in end:
        ends_when(tmp_path / "results.json")
    script = tmp_path / "cases.py"
    script.write_text(CASES.replace("END", end))
    outcome = ScriptOutcome(script, tmp_path)
    assert [outcome.of(case) for case in ("case_a", "case_b")] == ["", "Traceback"]
    assert outcome.of("case_c").startswith(reason)
    assert outcome.summary("x.py").startswith("x.py: 1 held, 1 failed, ")
    assert not outcome.whole
