"""The host's networks at real sizes take the operations that `surf_core.cost` says, within 3 %."""

import pytest
from surf.tests.core.test_cost_sound import PRICED, page_rows
from surf.tests.host.flow_run import call, on_a_host

pytestmark = on_a_host


@pytest.mark.slow
def test_torch_counts_on_the_hosts_networks_what_the_page_says(tmp_path):
    done = call("-m", "benchmarks.cost.audio_video", "--sizes=2", f"--out={tmp_path / 'a.md'}")
    assert done.returncode == 0, done.stderr[-4000:]
    if "has no MiniMax H3" in done.stdout:
        pytest.skip(done.stdout)
    rows = page_rows("One forward", tmp_path / "a.md")
    assert len(rows) == 2 * len(PRICED)
    assert all(abs(float(row[-1]) - 1) < 0.03 for row in rows)
    assert [row for row in page_rows("One forward") if row in rows] == rows
