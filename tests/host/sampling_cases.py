"""The switch inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/sampling_cases.py RESULTS.json

Every function `case_*` of the modules below takes the host and asserts.
"""

import embedded_cases
import golden_cases
import inprocess
import inside
import switch_cases

MODULES = golden_cases, switch_cases, embedded_cases


if __name__ == "__main__":
    results = inside.enter()
    inside.report(results, inprocess.bound(*map(vars, MODULES)))
