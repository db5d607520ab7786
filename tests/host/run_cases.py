"""Run cases inside a real host, in one process; called by test_golden.py.

    cd $COMFYUI_PATH && python tests/host/run_cases.py RESULTS.json [case_name ...]

The pack's own folders must not be on sys.path: its `nodes` would hide the host's.
"""

import json
import sys
import traceback
from pathlib import Path

import checkpoints
import golden_cases
import inprocess
import switch_cases
import torch


def main(results, *only):
    """Write {case: traceback, empty when it held}."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    checkpoints.start_host(Path.cwd())
    said = {}
    with torch.inference_mode():
        host = inprocess.Host(checkpoints)
        for name, case in [*vars(golden_cases).items(), *vars(switch_cases).items()]:
            if not name.startswith("case_") or (only and name not in only):
                continue
            try:
                case(host)
                said[name] = ""
            except Exception:  # noqa: BLE001 every failure is a result of its case
                said[name] = traceback.format_exc()
    Path(results).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
