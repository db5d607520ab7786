"""What awaits a GPU: the commands run at toy size, and pages made without one are the code's."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from surf.surf_core import cost

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.slow


def called(forks, script):
    """Run lines of Python beside the benchmarks; what they print is JSON."""
    return json.loads(forks.start_script(script).finish(600).splitlines()[-1])


def rows_of(text):
    """[{column: cell}] of each table, in their order."""
    tables = []
    for block in re.split(r"\n(?!\|)", text):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            head, _, *rest = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
            tables.append([dict(zip(head, row, strict=True)) for row in rest])
    return tables


def test_the_committed_page_of_plans_is_what_its_command_prints(forks):
    [page] = RESULTS.glob("flops-*-plans.md")
    committed = page.read_text(encoding="utf-8")
    [command] = re.findall(r"^    python -m (.*)$", committed, re.MULTILINE)
    printed = forks.start(*shlex.split(command)).finish(600)

    def kept(text):
        """All but the machine that it was made on."""
        return [line for line in text.strip().splitlines() if not line.startswith("Commit ")]

    assert kept(printed) == kept(committed)


def test_plans_are_priced_as_cost_prices_them(forks):
    options = ["--size", "720p", "--cfg", "first", "--keep", "1", "0.5", "--base", "wan"]
    printed = forks.start("benchmarks.speed.host_flow", "--dry-run", *options).finish(600)
    rows, _ = rows_of(printed)
    sizes = {"plain": (720, 1280), "first": (480, 832), "second": (240, 416)}

    def petaflops(shape, side, **more):
        height, width = sizes[side]
        stage = cost.Evaluations(shape=shape, frames=81, height=height, width=width, **more)
        return stage.flops / 1e15

    plain = petaflops(cost.WAN_14B, "plain", steps=50)
    legs = [petaflops(cost.WAN_14B, "first", steps=10),
            petaflops(cost.WAN_14B, "second", steps=40, guided=False)]  # fmt: skip
    assert [(row["refiner"], row["kept"]) for row in rows] == [
        ("surf_1b", "1"), ("wan_1_3b", "1"), ("surf_1b", "0.5"), ("wan_1_3b", "0.5")
    ]  # fmt: skip
    for row in rows:
        shape = {"surf_1b": cost.SURF_1B, "wan_1_3b": cost.WAN_1_3B}[row["refiner"]]
        kept = None if row["kept"] == "1" else (1800,) * 21
        refine = petaflops(shape, "plain", steps=10, window=4, guided=False, kept=kept)
        ours = [*legs, refine, sum(legs) + refine]
        names = ["first leg, PF", "second leg, PF", "refine, PF", "all, PF"]
        assert [float(row[name]) for name in names] == pytest.approx(ours, rel=1e-3)
        assert float(row["times fewer operations"]) == pytest.approx(plain / ours[-1], rel=1e-3)
        assert float(row["needed"]) == pytest.approx(12.58 * ours[-1] / plain, abs=1e-3)


@pytest.fixture(scope="module")
def found(forks):
    """What three questions to the benchmarks are answered by, in one process."""
    return called(
        forks,
        """
import json
import time
import torch
from benchmarks.speed import attention_ways as ways
from benchmarks.speed import window_attention as timed
from benchmarks.speed.host.stages import operations
from surf_core import cost

kept = [0, 3, 1350, 700, 1] + [30] * 16
counted = [[sum(operations(shape, 81, 480, 720, window, kept)),
            cost.forward_flops(shape, 81, 480, 720, window, kept)]
           for shape in (cost.SURF_1B, cost.WAN_1_3B) for window in (0, 4, 8)]

def phases(ours, other):
    return [{"segments": 9.0, "sdpa, cuDNN": other, "triton": each} for each in (ours, 1.0)]

cases = {("720p", 4, 1): phases(8.0, 5.0), ("720p", 8, 0.5): phases(8.6, 5.0),
         ("1080p", 4, 1): [{"segments": 1.0}, {"segments": 1.0, "triton": 0.1}]}
verdicts = timed.verdict(cases), timed.verdict({("720p", 4, 1): [{"segments": 1.0}]})

def broken(q, k, v):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

ways.why_not_dense = lambda dense, dtype, device: None
ways.DENSE = {"broken": broken, "wrong": lambda q, k, v: v}
_, clip = next(timed.clips("tiny", [4]))
deadline = time.perf_counter() + 1
tried = list(timed.rows_of(timed.measure(clip, torch.zeros(()), 1, deadline), clip))
print(json.dumps({"operations": counted, "verdicts": verdicts, "tried": tried}))
""",
    )


def test_operations_of_kept_tokens_are_those_of_cost(found):
    for ours, theirs in found["operations"]:
        assert ours == theirs


def test_the_triton_kernel_wins_only_by_five_percent_over_the_best_other_way(found):
    lines, nothing = found["verdicts"]
    [table] = rows_of("\n".join(lines))
    assert [row["wins by 5 %"] for row in table] == ["yes", "no", "-"]
    assert table[0]["best other"] == "sdpa, cuDNN"
    assert float(table[0]["triton / other"]) == pytest.approx(0.9)
    assert "wins by 5 % at: 720p in windows of 4 at 1 of the tokens." in lines[-2]
    assert "is not measured" in nothing[-2]


def test_a_way_that_fails_or_is_wrong_is_a_row_and_the_others_stay(found):
    said = {row[0]: str(row[1]) for row in found["tried"]}
    assert said["broken"] == "not measured: out of memory"
    assert said["wrong"].startswith("not measured: WrongResult: its relative error is ")
    others = [name for name, cell in said.items() if "not measured" not in cell]
    assert others[:3] == ["segments", "roll + mask", "full"]


@pytest.fixture(scope="module")
def kernels(forks, tmp_path_factory):
    """The pages of the part that needs no host: {subject: text}."""
    out = tmp_path_factory.mktemp("pages")
    forks.start("benchmarks.on_gpu", "kernels", "--toy", f"--out={out}").finish(600)
    return {path.stem.split("-", 4)[-1]: path.read_text(encoding="utf-8") for path in out.iterdir()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes its minutes on a GPU")
class TestKernels:
    def test_every_command_writes_a_page_with_its_origin(self, kernels):
        assert kernels.keys() == {"gpu-tests", "window-attention", "refiner-step"}
        for text in kernels.values():
            assert re.search(r"Commit .*torch \d", text)
            assert "    python -" in text
            assert "--out" not in text
        assert re.search(r"\d+ skipped", kernels["gpu-tests"])

    def test_attention_is_timed_by_each_of_torchs_kernels_or_it_says_why_not(self, kernels):
        text = kernels["window-attention"]
        ways = {row["way"] for row in rows_of(text)[0]}
        for name in ("sdpa, cuDNN", "sdpa, flash", "sdpa, efficient", "FA3", "triton"):
            assert name in ways or f"- {name}: not run: " in text
        assert len(rows_of(text)[1]) == 3

    def test_the_committed_page_of_windows_has_these_columns(self, kernels):
        [page] = RESULTS.glob("cpu-*-window-attention.md")
        committed = rows_of(page.read_text(encoding="utf-8"))
        for ours, theirs in zip(rows_of(kernels["window-attention"]), committed, strict=True):
            assert ours[0].keys() == theirs[0].keys()

    def test_a_step_of_the_refiner_is_timed_whole_in_segments_and_on_fewer_tokens(self, kernels):
        [rows] = rows_of(kernels["refiner-step"])
        segments = "segment-wise, eager, sdpa"
        assert [(row["way"], row["kept, %"]) for row in rows[:3]] == [
            ("whole, eager, sdpa", "all"), (segments, "all"), (segments, "100.0")
        ]  # fmt: skip
        assert [row["operations"] for row in rows[:3]] == ["1.000"] * 3
        assert 45 < float(rows[3]["kept, %"]) < 60
        assert 0.4 < float(rows[3]["operations"]) < 0.8
        for row in rows:
            assert float(row["first, s"]) > 0
            faster = float(row["step, ms"]) / float(rows[0]["step, ms"])
            assert float(row["time"]) == pytest.approx(faster, rel=0.01)


STOPPED = """
import json, os, signal, subprocess, sys, time
from benchmarks import on_gpu

signal.signal(signal.SIGINT, signal.SIG_IGN)  # As under nohup.
script = '''
import time
try:
    open("PATH", "w").close()
    time.sleep(3600)
finally:
    print("page")
'''
wait = subprocess.Popen.communicate

def until_begun(process, timeout=None):
    while timeout == 3.0 and process.poll() is None:
        if os.path.exists("PATH"):
            raise subprocess.TimeoutExpired(process.args, timeout)
        time.sleep(0.02)
    return wait(process, timeout=timeout)

subprocess.Popen.communicate = until_begun
print(json.dumps(on_gpu.run([sys.executable, "-c", script], 3.0)))
"""
"""The three seconds are over once the command has begun, however long a busy machine takes."""


def test_a_command_that_takes_too_long_is_stopped_and_keeps_its_page(forks, tmp_path):
    ended, said = called(forks, STOPPED.replace("PATH", str(tmp_path / "begun")))
    assert ended.startswith("stopped, status ")
    assert "page" in said


def test_what_compiling_fails_at_is_a_row_and_what_comes_too_late_is_not_run(forks):
    rows = called(
        forks,
        """
import json, time
from types import SimpleNamespace
from benchmarks.speed import compile as benchmark

def fail(*_):
    raise RuntimeError("backend='inductor' raised:\\nKeyError: 'cell'\\nand more")

benchmark.CompiledRun.measure, benchmark.compiled = fail, lambda model, mode: model
profiler, setting = SimpleNamespace(over=lambda model: model), SimpleNamespace(name="one")
rows = []
for deadline in (time.perf_counter() + 1000, time.perf_counter() - 1):
    runs = [benchmark.CompiledRun(setting=setting, mode="surf") for _ in range(2)]
    benchmark.measure(None, runs, profiler, deadline, lambda: None)
    rows += [run.row("surf", run)[3] for run in runs]
print(json.dumps(rows))
""",
    )
    failed = "not measured: RuntimeError: backend='inductor' raised: KeyError: 'cell'"
    assert rows == [failed] * 2 + ["not measured: the minutes were over"] * 2


@pytest.fixture(scope="module")
def said(forks):
    """The commands by part, as printed."""
    return forks.start("benchmarks.on_gpu").finish(600)


def test_the_commands_for_a_gpu_fit_half_an_hour_with_seven_minutes_more_and_nine_each(said):
    minutes = [float(each) for each in re.findall(r": ([\d.]+) minutes$", said, re.MULTILINE)]
    assert len(minutes) == 6
    assert max(minutes) <= 9
    assert sum(minutes[:5]) <= 28
    assert minutes[5] <= 7


def test_make_calls_every_part_in_its_order(said):
    parts = re.findall(r"^([\w-]+): ", said, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"for part in ([\w -]+);", makefile)[1].split() == parts
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"-m benchmarks.on_gpu ([\w-]+)", contributing) == parts


@pytest.mark.parametrize("part", ["flow-720p", "flow-1080p", "hunyuan", "cards", "extras"])
def test_a_part_that_needs_a_host_says_so_before_it_runs_anything(forks, part, tmp_path):
    out = tmp_path / "pages"
    done = forks.start("benchmarks.on_gpu", part, "--toy", f"--out={out}")
    assert done.wait(300) == 2
    assert f"{part} needs COMFYUI_PATH, a ComfyUI checkout" in done.stderr
    assert not out.exists()
