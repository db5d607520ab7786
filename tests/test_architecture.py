"""The layout and its rules, read from the source text: each is shown to see what breaks it."""

import ast
import re
import shutil

import pytest

from .import_law import (
    ROOT,
    all_files,
    cycles,
    direction,
    host_api_imports,
    host_files_have_rooms,
    host_rooms,
    name_of,
    pack_files,
    third_party_imports,
    tree_of,
)

LONGEST = 400
LONGEST_HOST = 300
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
MUTATORS = {"append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}
TEXT = {".py", ".md", ".toml", ".json", ".yml", ".yaml", ".txt", ".js", ".mjs"}
TRANSLATED = re.compile(
    r"^web/docs/Surf\w+/(ja|zh|zh-TW)\.md$|^locales/(ja|zh|zh-TW)/|^README\.(ja|zh|zh-TW)\.md$"
)


def lengths_and_names(root):
    """No file over 400 lines, in nodes/host over 300; none named after nothing."""
    for path in all_files(root):
        count = len(path.read_text(encoding="utf-8").splitlines())
        most = LONGEST_HOST if name_of(root, path).startswith("nodes/host/") else LONGEST
        if count > most:
            yield f"{name_of(root, path)} has {count} lines; divide the subject"
        if path.stem in VAGUE:
            yield f"{name_of(root, path)}: name the subject"


def written(node):
    """What a statement or call changes, as source text."""
    if isinstance(node, ast.Assign | ast.Delete):
        return [ast.unparse(target) for target in node.targets]
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [ast.unparse(node.target)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return [ast.unparse(node.func.value)] if node.func.attr in MUTATORS else []
    return []


def interpreter_state(root):
    """Nothing in the pack changes sys.path or sys.modules, or reads the environment."""
    for path in pack_files(root):
        for node in ast.walk(tree_of(path)):
            where = f"{name_of(root, path)}:{getattr(node, 'lineno', 0)}"
            for target in written(node):
                if re.match(r"sys\.(path|modules)\b", target):
                    yield f"{where} writes {target}"
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if text in ("os.environ", "os.getenv", "os.putenv"):
                    yield f"{where} touches {text}"
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
                yield f"{where} imports names from {node.module}"


def prints(root):
    """Only command-line entry points print."""
    for path in pack_files(root):
        name = name_of(root, path)
        if path.name in ("__main__.py", "demo.py") or name.startswith("surf_core/training/"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"{name}:{node.lineno} prints"


def not_ascii(root):
    """Sources, documents and workflows are ASCII, all but translations."""
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        hidden = any(
            part.startswith(".") and part not in (".github", ".ci") for part in inner.parts
        )
        if path.suffix not in TEXT or hidden or inner.parts[0] in ("demo", "runs", "build"):
            continue
        if TRANSLATED.match(inner.as_posix()):
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not line.isascii():
                yield f"{inner.as_posix()}:{number} is not ASCII"


def old_style_registration(root):
    """NODE_CLASS_MAPPINGS, even empty, would hide comfy_entrypoint from the host."""
    for path in pack_files(root):
        if "NODE_CLASS_MAPPINGS" in path.read_text(encoding="utf-8"):
            yield f"{name_of(root, path)} mentions NODE_CLASS_MAPPINGS"


def long_executes(root):
    """A node is a schema and at most ten lines of execute."""
    for path in pack_files(root):
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef) or node.name != "execute":
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            count = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if count > 10:
                yield f"{name_of(root, path)}:{node.lineno} execute has {count} lines"


def nested_elsewhere(root):
    """Only nodes/host/nested.py asks whether a latent has parts, and takes them apart."""
    words = r"is_nested|nested_tensor|NestedTensor|pack_latents|\bunbind\(\)|[\"']latent_shapes"
    for path in pack_files(root):
        name = name_of(root, path)
        if not name.startswith("nodes/") or name == "nodes/host/nested.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(words, line):
                yield f"{name}:{number} knows of nested latents; use nodes/host/nested.py"


def work_at_import(root):
    """The root imports nothing at module level but the standard library."""
    path = root / "__init__.py"
    for node in tree_of(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield f"__init__.py:{node.lineno} imports at module level"


RULES = [
    third_party_imports,
    host_api_imports,
    direction,
    host_rooms,
    host_files_have_rooms,
    cycles,
    lengths_and_names,
    interpreter_state,
    prints,
    not_ascii,
    old_style_registration,
    long_executes,
    nested_elsewhere,
    work_at_import,
]
LONG_EXECUTE = "class A:\n    def execute(cls):\n" + "        x = 1\n" * 11
# (rule, planted file, its text, what the rule must say)
PLANTED = [
    (third_party_imports, "surf_core/planted.py", "import comfy.samplers\n", "imports comfy"),
    (third_party_imports, "surf_core/planted.py", "def f():\n    import nodes\n", "imports nodes"),
    (third_party_imports, "surf_core/planted.py", "from surf_core import flow\n", "surf_core"),
    (third_party_imports, "surf_core/refiner/planted.py", "import av\n", "imports av"),
    (third_party_imports, "nodes/planted.py", "import folder_paths\n", "folder_paths"),
    (third_party_imports, "nodes/planted.py", "from comfy.utils import x\n", "comfy.utils"),
    (third_party_imports, "nodes/host/planted.py", "import requests\n", "requests"),
    (host_api_imports, "nodes/planted.py", "from comfy_api.v0_0_2 import io\n", "v0_0_2"),
    (direction, "surf_core/schedule.py", "from .flow import euler\n", "imports surf_core/flow.py"),
    (direction, "surf_core/unranked.py", "from .window import segments\n", "imports surf_core/win"),
    (direction, "surf_core/flow.py", "from ..nodes import x\n", "imports nodes/__init__.py"),
    (direction, "surf_core/tiny/planted.py", "from ..training.tiny import scenes\n", "training"),
    (direction, "nodes/planted.py", "from ..surf_core.training import muon\n", "training"),
    (direction, "nodes/host/planted.py", "from .. import SurfExtension\n", "nodes/__init__"),
    (direction, "surf_core/flow.py", "from .nowhere import x\n", "does not exist"),
    (host_rooms, "nodes/planted.py", "from .host.skip.wrapper import with_mask\n", "front door"),
    (host_rooms, "nodes/host/refine/planted.py", "from ..vae.memory import x\n", "front door"),
    (host_rooms, "nodes/host/refiner/planted.py", "from ..refine import refine\n", "not below"),
    (
        host_rooms,
        "nodes/host/vae/planted.py",
        "from ..attention import with_windows\n",
        "not below",
    ),
    (host_rooms, "nodes/host/planted.py", "from .attention import with_windows\n", "not below"),
    (host_rooms, "nodes/host/skip/planted.py", "from .. import refine\n", "not below"),
    (host_rooms, "nodes/host/node/planted.py", "from ..models import x\n", "not below"),
    (host_rooms, "nodes/host/planted.py", "from .node.name import NodeLog\n", "front door"),
    (host_rooms, "nodes/host/skip/planted.py", "from .. import models, preview\n", "not below"),
    (host_rooms, "nodes/host/refine/planted.py", "from ..vae import memory\n", "front door"),
    (host_files_have_rooms, "nodes/host/planted/__init__.py", "", "planted: not both"),
    (lengths_and_names, "surf_core/planted.py", "x = 1\n" * 401, "401 lines"),
    (lengths_and_names, "nodes/host/skip/planted.py", "x = 1\n" * 301, "301 lines"),
    (lengths_and_names, "nodes/host/utils.py", "", "name the subject"),
    (interpreter_state, "nodes/planted.py", "import sys\nsys.path.insert(0, '')\n", "sys.path"),
    (interpreter_state, "nodes/planted.py", "import sys\nsys.modules['x'] = 1\n", "sys.modules"),
    (interpreter_state, "nodes/planted.py", "import sys\nsys.modules.pop('x')\n", "sys.modules"),
    (interpreter_state, "nodes/planted.py", "import sys\nsys.path += ['x']\n", "sys.path"),
    (interpreter_state, "surf_core/planted.py", "import os\nos.environ.get('X')\n", "os.environ"),
    (interpreter_state, "surf_core/planted.py", "from os import environ\n", "imports names"),
    (prints, "surf_core/planted.py", "print(1)\n", "prints"),
    (not_ascii, "web/docs/planted.md", "a \u2192 b\n", "not ASCII"),
    (not_ascii, "web/docs/SurfDrafts/planted.md", "a \u2192 b\n", "not ASCII"),
    (not_ascii, "locales/planted.json", "a \u2192 b\n", "not ASCII"),
    (old_style_registration, "nodes/planted.py", "NODE_CLASS_MAPPINGS = {}\n", "NODE_CLASS"),
    (long_executes, "nodes/planted.py", LONG_EXECUTE, "11 lines"),
    (nested_elsewhere, "nodes/planted.py", "x = getattr(y, 'is_nested', False)\n", "knows of"),
    (nested_elsewhere, "nodes/host/planted.py", "a, b = y.unbind()\n", "knows of nested"),
    (nested_elsewhere, "nodes/host/skip/planted.py", 'c["latent_shapes"]\n', "knows of nested"),
    (work_at_import, "__init__.py", "from .nodes import SurfExtension\n", "module level"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the pack, to plant violations in."""
    target = tmp_path_factory.mktemp("pack")
    for folder in ("surf_core", "nodes", "web"):
        ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    shutil.copy(ROOT / "__init__.py", target)
    return target


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_obeys(rule):
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "expected"),
    PLANTED,
    ids=[f"{rule.__name__}-{name}-{i}" for i, (rule, name, _, _) in enumerate(PLANTED)],
)
def test_the_rule_sees_a_planted_violation(copy, rule, name, text, expected):
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(text, encoding="utf-8")
    try:
        assert any(re.search(expected, said) for said in rule(copy))
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def test_a_planted_cycle_is_seen(copy):
    for mine, other in (("one", "two"), ("two", "one")):
        (copy / f"surf_core/{mine}.py").write_text(f"from .{other} import x\n")
    found = list(cycles(copy))
    for mine in ("one", "two"):
        (copy / f"surf_core/{mine}.py").unlink()
    assert any("one.py" in said and "two.py" in said for said in found)


def test_the_tree_in_contributing_lists_the_files_of_nodes_and_no_others():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text[text.index("    nodes/\n") : text.index("A room is entered")].splitlines()
    # Descriptions begin in column 40.
    names = [name for line in tree for name in line[:40].split()]
    listed = {name.removesuffix(".py") for name in names if not name.endswith("/")}
    files = {path.stem for path in (ROOT / "nodes").rglob("*.py")} - {"__init__"}
    assert listed == files
