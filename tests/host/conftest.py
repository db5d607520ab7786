"""Scripts run once a session, when the first of their cases is asked for, and are summed up."""

import pytest
from surf.tests.host.outcome import ScriptOutcome

OUTCOMES = pytest.StashKey()


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory, request):
    """Script -> what it left."""
    known = request.config.stash.setdefault(OUTCOMES, {})

    def outcome(script):
        if script not in known:
            folder = tmp_path_factory.mktemp(script.removesuffix(".py"))
            count = request.config.getoption("--fuzz")
            known[script] = ScriptOutcome(script, folder, count=count)
        return known[script]

    return outcome


def pytest_terminal_summary(terminalreporter, config):
    for script, outcome in config.stash.get(OUTCOMES, {}).items():
        terminalreporter.write_line(outcome.summary(script))
