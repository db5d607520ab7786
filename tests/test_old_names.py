"""Names that were replaced stay away: one word has one meaning, and no second spelling of it."""

import ast
from collections import defaultdict

import pytest

from .import_law import ROOT, all_files, name_of, tree_of

OLD = {
    # Old name: what it is called now, or why there is none.
    "FiniteWatch": "NonFiniteGuard",
    "HeldDifference": "deleted with Hold Guidance",
    "HOLD_EVERY": "deleted with Hold Guidance",
    "Holes": "TokenDropout",
    "HostDense": "HostAttention",
    "SurfHoldGuidance": "deleted with Hold Guidance",
    "Told": "PrefilledCache",
    "Watch": "DivergenceGuard, and StageProfiler in the benchmarks",
    "_told": "with_sigma_start",
    "deal": "partition",
    "held_forwards": "deleted with Hold Guidance",
    "holding": "deleted with Hold Guidance",
    "renoise_literal": "computed by the benchmark that shows it",
    "round_up": "deleted: no kernel needed it",
    "smear": "deleted: no node offered it",
    "spread": "shard_model, and stratified_levels",
    "standing_in": "using_segment",
    "think": "cross_attend_and_mlp",
}
"""Names that nothing defines, imports or takes as an argument, in the pack and the benchmarks."""
OLD_HERE = {
    ("surf_core/skip/pack.py", "places"): "indices",
    ("surf_core/refiner/fused.py", "whole"): "out_of_place",
    ("surf_core/refiner/layers.py", "steps"): "fused_ops",
    ("surf_core/window/geometry.py", "Run"): "StridedRanges",
    ("surf_core/window/geometry.py", "runs"): "strided_ranges",
    ("surf_core/skip/mask.py", "hold"): "hysteresis",
    ("nodes/host/conditioning/grid.py", "Step"): "SizeChange",
    ("nodes/host/others.py", "tell"): "log_patches",
    ("nodes/host/skip/seedvr2.py", "tell"): "fill_cache",
    ("nodes/host/skip/seedvr2.py", "give"): "prefill",
}
"""Names that are old in one file, and mean something else in others."""
HOSTS_CLASSES = {"WanModel"}
"""Classes of the host that the pack tells by name: several tests define one with what they need."""
GONE = (
    "nodes/guidance.py", "nodes/host/guidance.py", "surf_core/guidance.py",
    "surf_core/training/holes.py", "surf_core/training/watch.py", "web/docs/SurfHoldGuidance.md",
)  # fmt: skip


def names_in(tree, imported_only=False):
    """Yield (line, name) of what a file defines, imports, or takes as an argument or a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            yield node.lineno, node.name
        if imported_only:
            continue
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id
        if isinstance(node, ast.Assign):
            yield from ((node.lineno, one.id) for one in node.targets if isinstance(one, ast.Name))


def old_names(name, tree):
    """Yield every old name in a file that is called `name`; of a test, what it imports."""
    for line, word in names_in(tree, imported_only=name.startswith("tests/")):
        new = OLD_HERE.get((name, word), OLD.get(word))
        if new is not None:
            yield f"{name}:{line} {word}: {new}"


def test_no_file_defines_or_imports_an_old_name():
    assert [
        s for path in all_files(ROOT) for s in old_names(name_of(ROOT, path), tree_of(path))
    ] == []


def shared_class_names(root):
    """Yield each name of two classes or more, with the files that define one."""
    files = defaultdict(list)
    for path in all_files(root):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and node.name not in HOSTS_CLASSES:
                files[node.name].append(f"{name_of(root, path)}:{node.lineno}")
    yield from (f"{name}: {', '.join(places)}" for name, places in files.items() if places[1:])


def test_no_two_classes_share_a_name():
    assert list(shared_class_names(ROOT)) == []


def test_two_classes_of_one_name_are_seen_wherever_they_are(tmp_path):
    for folder in ("surf_core", "nodes", "tests", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "__init__.py").write_text("class WanModel: pass\n")
    (tmp_path / "surf_core/one.py").write_text("class Shared: pass\nclass WanModel: pass\n")
    assert list(shared_class_names(tmp_path)) == []
    (tmp_path / "tests/two.py").write_text("def test_x():\n    class Shared: pass\n")
    assert list(shared_class_names(tmp_path)) == ["Shared: surf_core/one.py:1, tests/two.py:2"]


@pytest.mark.parametrize("path", GONE)
def test_a_deleted_file_stays_deleted(path):
    assert not (ROOT / path).exists()


@pytest.mark.parametrize(
    "text",
    [
        "class Holes: pass",
        "def think(): pass",
        "from .x import round_up",
        "def choose(scores, smear=0): pass",
        "class A:\n    spread: int = 0",
    ],
)
def test_an_old_name_is_seen(text):
    assert list(old_names("surf_core/planted.py", ast.parse(text)))
    assert bool(list(old_names("tests/planted.py", ast.parse(text)))) == ("import" in text)


@pytest.mark.parametrize(("name", "word"), list(OLD_HERE))
def test_a_name_that_is_old_in_one_file_is_seen_there(name, word):
    assert (ROOT / name).exists()
    assert list(old_names(name, ast.parse(f"def {word}(): pass")))
    assert not list(old_names("surf_core/planted.py", ast.parse(f"def {word}(): pass")))
