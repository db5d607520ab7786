"""What README and guide show was measured, and is what lies in benchmarks/results."""

import json
import re
from pathlib import Path

import pytest
from surf.surf_core.training.clip_source import NoClips
from surf.surf_core.training.recipes import RECIPES
from surf.tests.test_archive import archive
from surf.tests.test_workflow_files import describe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = ROOT / "web" / "docs" / "guide"
MEASURED = (GUIDE / "measurements.md").read_text(encoding="utf-8")
TRAINING = (GUIDE / "training.md").read_text(encoding="utf-8")


def test_pages_name_programs_that_exist_or_the_commit_that_has_them():
    pages = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"^    .*python -m ((?:benchmarks|surf_core)[\w.]+)", text, re.MULTILINE)
        gone = re.search(r"^At commit [0-9a-f]{7}; the program is not part", text, re.MULTILINE)
        for module in named:
            path = ROOT / f"{module.replace('.', '/')}.py"
            assert path.exists() != bool(gone), (page.name, module)


def test_demo_table_is_from_the_committed_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "demo-report.json").read_text())
    names = {row["name"] for row in report["rows"]}
    fewer = {f"{steps} steps at full resolution" for steps in (12, 16, 20)}
    controls = {"grey", "another seed", "direct low resolution", "the switch without low steps"}
    assert fewer | controls | {"baseline", "SURF preview", "SURF refined"} < names
    for row in report["rows"]:
        # Seconds of a shared machine say nothing.
        shown = [str(value) for name, value in row.items() if name != "seconds"]
        assert f"| {' | '.join(shown)} |" in MEASURED


def table_of(text, first):
    """{first cell: {column: cell}} of the table whose head begins so."""
    head, _, *rows = [
        line.strip("| ").split(" | ")
        for line in re.split("\n\n|\n<!--", text[text.index(f"| {first}") :])[0].splitlines()
    ]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}


def test_plans_are_those_of_the_committed_page():
    [result] = (ROOT / "benchmarks" / "results").glob("flops-*-plans.md")
    lines = result.read_text(encoding="utf-8").splitlines()
    head, *rows = [
        line.strip("| ").split(" | ") for line in lines if line.startswith(("| base", "| Wan"))
    ]
    counted = {}
    for cells in rows:
        row = dict(zip(head, cells, strict=True))
        if row["refiner"] == "surf_1b":
            counted[row["steps"], row["guidance"], row["kept"], row["target"]] = row
    section = MEASURED[MEASURED.index("plans:begin") : MEASURED.index("plans:end")]
    shown = [line.strip("| ").split(" | ") for line in section.splitlines() if "| 10 +" in line]
    assert len(shown) == 4
    for what, guidance, share, *cells in shown:
        plan = (
            what[: len("10 + 30 + 10")],
            {"everywhere": "on", "until the switch": "first"}[guidance],
            {"all": "1", "half": "0.5"}[share],
        )
        for size, cell in zip(("720p", "1080p"), cells, strict=True):
            assert cell == counted[(*plan, size)]["times fewer operations"]
    papers = counted["10 + 30 + 10", "on", "1", "720p"]
    said = " ".join(section.split())
    assert f"are {papers['all, PF']} PFLOPs at 720p" in said
    assert f"plain run {papers['plain, PF']} where the paper has 658.46" in said
    assert f"ten guided steps at 480p alone are {papers['first leg, PF']}." in said


def test_times_on_a_gpu_are_those_of_the_committed_page():
    [result] = (ROOT / "benchmarks" / "results").glob("h200-*-flow-wan-720p.md")
    lines = result.read_text(encoding="utf-8").splitlines()
    first = lines.index("## The whole flow")
    rows = [line.strip("| ").split(" | ") for line in lines[first : lines.index("## Stages")]]
    measured = {(row[1], row[2]): row for row in rows if row[0] == "720p"}
    shown = MEASURED[MEASURED.index("gpu:begin") : MEASURED.index("gpu:end")].splitlines()
    shown = [line.strip("| ").split(" | ") for line in shown if line.startswith("| ")][2:]
    assert len(shown) == 5
    for refiner, share, guidance, *cells in shown:
        name = {"surf_1b": "surf_1b", "Wan 2.1 1.3B": "wan_1_3b"}[refiner]
        name += {"all": "", "half": ", keep 0.5"}[share]
        row = measured[{"everywhere": "on", "until the switch": "first"}[guidance], name]
        assert cells == [row[15], row[16], row[17]]


def rows_of(page, start):
    """The rows of a page's tables that begin so, as lists of cells."""
    [path] = (ROOT / "benchmarks" / "results").glob(page)
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {start}")]


def test_a_decode_into_a_file_is_what_the_committed_page_counts():
    counted = [rows_of("cpu-*-streamed-decode.md", f"{size} ") for size in ("720p", "1080p", "4K")]
    work = [f"{float(row[6]):.1f}" for rows in counted for row in rows if row[2] == "1.5"]
    assert f"in 1.5 GB with {work[0]}, {work[1]} and {work[2]} times the" in MEASURED
    page = (GUIDE.parent / "SurfDecodeVideo.md").read_text(encoding="utf-8")
    assert f"{work[0]} times at 720p, {work[1]} at 1080p, {work[2]} at 4K" in page
    short, long = (rows_of("cpu-*-streamed-decode.md", f"{frames} ")[0] for frames in (81, 161))
    held, file = (float(long[i]) - float(short[i]) for i in (2, 3))
    assert file < held / 5


def test_edges_of_chunks_are_those_of_the_committed_page():
    clips = ("smooth", "texture", "embedded")
    rows = [row for clip in clips for row in rows_of("cpu-*-chunk-edges.md", clip)]
    assert len(rows) == 8
    assert max(float(row[2]) for row in rows) <= 1.05
    assert f"up to {max(float(row[3]) for row in rows):.1f} times" in MEASURED


def test_seconds_of_plans_are_those_of_the_page():
    rows = rows_of("cpu-2026-11-29-plan-seconds.md", "")
    off = {
        part: [abs(float(row[2]) / float(row[3]) - 1) for row in rows if row[1] == part]
        for part in ("plan", "plain run")
    }
    assert len(off["plan"]) == len(off["plain run"]) == 3
    assert max(off["plan"]) <= 0.05
    said = " ".join(MEASURED.split())
    assert f"on a CPU within {100 * max(off['plan']):.1f} %" in said
    assert f"within {100 * max(off['plain run']):.1f} % (" in said
    rows = [row for row in rows_of("cpu-2026-11-28-plan-seconds.md", "") if row[1] == "plain run"]
    worst = max(abs(float(row[2]) / float(row[3]) - 1) for row in rows)
    assert f"by up to {100 * worst:.0f} % on these plans at commit ab1a792" in said


def test_cost_of_decoding_is_that_of_the_committed_page():
    [result] = (ROOT / "benchmarks" / "results").glob("flops-*-vae-decode.md")
    operations, chosen = result.read_text(encoding="utf-8").split("## What Surf VAE Decode")
    rows = [line.strip("| ").split(" | ") for line in chosen.splitlines() if "| 1080p" in line]
    costs = [f"{float(row[4]):.2f}" for row in rows if row[1] in ("12", "16", "24")]
    said = " ".join(MEASURED.split())
    assert f"takes {costs[0]}, {costs[1]} and {costs[2]} times the operations" in said
    [tiles] = re.findall(
        r"1080p \| 256 / 64 \| host \|.*\| ([\d.]+) \| [\d.]+ \| 12 \|", operations
    )
    [whole] = re.findall(r"1080p \| whole \| both \|.*\| 1 \| ([\d.]+) \|", operations)
    assert f"tiles of 256 pixels {float(tiles):.2f} times" in said
    assert f"at once takes {float(whole):.0f} GiB" in said


def test_previews_of_other_models_are_those_of_the_committed_page():
    [result] = (ROOT / "benchmarks" / "results").glob("flops-*-audio-video.md")
    part = result.read_text(encoding="utf-8").split("## Previews")[1].split("## Refinements")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if "| 5 of 20 |" in line]
    counted = [[row[0], f"{row[1]}, {row[2]}", row[-1]] for row in rows]
    shown = MEASURED[MEASURED.index("previews:begin") : MEASURED.index("previews:end")].splitlines()
    shown = [line.strip("| ").split(" | ") for line in shown if line.startswith("| ")][2:]
    assert len(shown) >= 4
    for name, *cells in shown:
        assert [name.removesuffix(", with its sound"), *cells] in counted


def test_why_ltx_needs_no_preview_is_what_the_committed_page_counts():
    [result] = (ROOT / "benchmarks" / "results").glob("flops-*-audio-video.md")
    part = result.read_text(encoding="utf-8").split("## LTX-2.x begins small")[1]
    counts = dict(re.findall(r"^\| (.+?): .+ \| ([\d.]+) \| \w+ \|$", part, re.MULTILINE))
    page = (ROOT / "web" / "docs" / "SurfReshiftAnyGuider.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    own, ours = (float(counts[name]) for name in ("its template", "a preview from full size"))
    assert f"three at full size, {own:.2f} PFLOPs" in said
    assert f"four at half size, {ours:.2f} PFLOPs" in said


def test_refiner_table_is_from_the_committed_benchmarks():
    def rows(kind):
        [result] = (ROOT / "benchmarks" / "results").glob(kind)
        lines = result.read_text(encoding="utf-8").splitlines()
        return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]

    shown = MEASURED[MEASURED.index("refiner:begin") : MEASURED.index("refiner:end")].splitlines()
    shown = [line.strip("| ").split(" | ") for line in shown if re.match(r"\| (\d+p|4K) ", line)]
    flops = {(row[0], row[2]): row for row in rows("flops-*-surf-1b.md")}
    peaks = {
        (row[0], row[3]): row
        for row in rows("*-block-memory.md")
        if row[1:3] == ["scale", "bfloat16"]
    }
    assert [row[0] for row in shown] == ["720p", "1080p", "4K"]
    for size, full, windows, ratio, memory in shown:
        assert [full, windows] == [flops[size, "full"][3], flops[size, "4"][3]]
        assert ratio == flops[size, "4"][-1]
        assert memory == f"{peaks[f'{size}, meta', '4'][6]} MiB"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surf_1b", "wan_1_3b"])
def test_price_of_training_is_what_the_dry_run_says(name):
    price = RECIPES[name](NoClips()).dry_run(gpus=24, shard=8)
    shown = TRAINING[TRAINING.index("price:begin") : TRAINING.index("price:end")]
    work = price.flops * price.samples * 24 / 1e15
    cells = f"{price.parameters / 1e9:.4f} B | {price.memory / 2**30:.1f} GiB | {work:.2f} PFLOPs"
    assert f"| {name} | {cells} |" in shown


def test_figures_of_the_readme_are_those_of_the_measurements():
    said = " ".join(README.split())
    gpu = MEASURED[MEASURED.index("gpu:begin") : MEASURED.index("gpu:end")]
    rows = [line.strip("| ").split(" | ") for line in gpu.splitlines() if line.startswith("| Wan")]
    ratio = {row[2]: row[-1] for row in rows}
    assert f"**{ratio['everywhere']} times faster** with guidance everywhere" in said
    assert f"{ratio['until the switch']} times with guidance until the switch" in said
    [lost] = re.findall(
        r"what is right by -(\S+) \+- \S+ points. <!-- switch:end", " ".join(MEASURED.split())
    )
    assert f"which on the toy costs {lost} points of what is right" in said
    plans = MEASURED[MEASURED.index("plans:begin") : MEASURED.index("plans:end")].splitlines()
    rows = [line.strip("| ").split(" | ") for line in plans if line.startswith("| 10 + 30")]
    everywhere, until = (row[-1] for row in rows[:2])
    assert f"at 1080p: {everywhere} times fewer operations" in said
    assert f"{until} times until the switch" in said
    previews = table_of(MEASURED[MEASURED.index("previews:begin") :], "model | before")
    for name in ("MiniMax H3, with its sound", "Wan 2.2 A14B", "HunyuanVideo 1.5"):
        figure = previews[name]["times fewer operations than the plain run"]
        assert f"{name.split(',')[0]} {figure}" in said


def test_picture_of_the_flow_shows_what_was_measured():
    [result] = (ROOT / "benchmarks" / "results").glob("h200-*-flow-wan-720p.md")
    text = result.read_text(encoding="utf-8")
    whole = text[text.index("## The whole flow") :].split("\n\n")[1].splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in whole]
    [row] = [
        cells
        for cells in (dict(zip(head, row, strict=True)) for row in rows)
        if (cells["guidance"], cells["refiner"]) == ("on", "wan_1_3b")
    ]
    light, dark = ((GUIDE / f"flow{kind}.svg").read_text() for kind in ("", "-dark"))
    vae = float(row["upsample, s"]) + float(row["decode, s"])
    for picture in (light, dark):
        for stage, seconds in (("480p", "first leg, s"), ("240p", "second leg, s")):
            assert f">{stage} {float(row[seconds]):.1f} s<" in picture
        assert f">720p {float(row['refine, s']):.1f} s<" in picture
        assert f">VAE {vae:.1f} s<" in picture
        assert f">{row['plain and VAE, s']} s<" in picture
        assert f">{row['all, s']} s: <" in picture
        assert f">{row['all, times faster']} times faster<" in picture
    words = [re.findall(r">([^<>\n]+)<", picture) for picture in (light, dark)]
    assert words[0] == words[1]


def widgets(name, kind):
    """Widgets by name of the one node of a kind in a workflow."""
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    [node] = [node for node in graph["nodes"] if node["type"] == kind]
    return dict(zip(describe(kind)[3], node["widgets_values"], strict=True))


def test_settings_by_model_are_those_of_the_workflows():
    page = (GUIDE / "models.md").read_text(encoding="utf-8").replace("`", "")
    previews = table_of(page, "workflow | size before")
    refiners = table_of(page, "workflow | the model")
    assert len(previews) >= 7
    assert len(refiners) >= 7
    for name, row in previews.items():
        own = widgets(name, "SurfReshiftKSampler")
        steps, _, low = row.pop("steps").partition(", then steps_low ")
        size = row.pop("size before, after")
        assert (str(own["steps"]), str(own["steps_low"])) == (steps, low or "0")
        assert (own["low_resolution"], own["low_scale"]) == ("by scale", 0.5)
        assert size.endswith(", half")
        assert {key: str(own[key]) for key in row if key != "workflow"} | {"workflow": name} == row
    for name, row in refiners.items():
        own = widgets(name, "SurfRefiner")
        for key in ("sigma_start", "steps", "cfg", "window"):
            assert str(own[key]) == row[key], (name, key)


def pages():
    """Each README and every page under web/docs/, of every language."""
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "web" / "docs").rglob("*.md"))]


def anchors(path):
    """Anchors of a page's headings, as a browser makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.fixture(scope="module")
def installed():
    """Paths of what the archive holds."""
    return {ROOT / name for name in archive(ROOT)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_a_user_has(page, installed):
    """Within the archive, or to an address."""
    assert page in installed
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for target in filter(None, (target for pair in targets for target in pair)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path in installed, target
        assert not anchor or anchor in anchors(path), target


def test_readme_is_short_and_names_every_workflow():
    assert len(README.splitlines()) <= 150
    for page in GUIDE.glob("*.md"):
        assert f"web/docs/guide/{page.name}" in README, page.name
