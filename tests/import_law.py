"""Who may import whom: rules that read the source text and yield what breaks them."""

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOST = {"comfy", "comfy_extras", "comfyui_version", "folder_paths", "latent_preview",
        "node_helpers", "server"}  # fmt: skip
CORE = {"torch", "einops", "kornia", "safetensors"}
# Third-party packages by folder; the longest matching folder decides.
THIRD_PARTY = {
    "": set(),
    "surf_core/": CORE,
    "surf_core/degrade/": CORE | {"av"},
    "surf_core/refiner/": CORE | {"comfy_kitchen"},
    "surf_core/window/": CORE | {"flash_attn", "triton"},
    "surf_core/signature/files.py": CORE | {"av"},
    "surf_core/tiny/": CORE | {"av", "numpy", "PIL"},
    "surf_core/training/": CORE | {"av", "filelock", "numpy", "PIL", "pyarrow", "wandb"},
    "surf_core/training/prepare/": CORE
    | {"av", "diffusers", "numpy", "pyarrow", "ray", "tqdm", "transformers"},
    "nodes/": {"torch", "comfy_api"},
    "nodes/host/": {"torch", "comfy_api"} | HOST,
    "nodes/host/vae/video_file.py": {"torch", "comfy_api", "av"} | HOST,
    "nodes/host/vae/video_sound.py": {"torch", "comfy_api", "av"} | HOST,
    "nodes/host/drawing.py": {"torch", "comfy_api", "PIL"},
    "nodes/host/plan/": {"torch", "comfy_api", "PIL"} | HOST,
    "nodes/host/signature/": {"torch", "comfy_api", "PIL"} | HOST,
}
# Leaves first: a module imports its own rank or a lower one. A new subject needs one entry.
RANK = {
    "checks": 0,
    "digest": 0,
    "header": 0,
    "schedule": 1,
    "legs": 2,
    "resample": 1,
    "tiles": 1,
    "chunks": 2,
    "cuts": 2,
    "colour": 2,
    "cost": 2,
    "degrade": 2,
    "draft": 1,
    "run_state": 1,
    "flow": 2,
    "lowband": 2,
    "reshift": 2,
    "signature": 2,
    "skip": 2,
    "window": 2,
    "refiner": 3,
    "checkpoint": 4,
    "tiny": 5,
    "training": 6,
}
# The rooms of nodes/host, lower ones first; "" is for the files in none of them.
ROOMS = {
    "node": 0, "": 1, "attention": 2, "conditioning": 2, "vae": 2, "drafts": 3, "refiner": 3,
    "image_to_video": 3, "skip": 4, "preview": 5, "refine": 5, "plan": 6, "signature": 2,
    "resume": 2,
}  # fmt: skip


def pack_files(root):
    """Every Python file that the host would import, sorted."""
    return [
        path
        for folder in ("surf_core", "nodes")
        for path in sorted((root / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ] + [root / "__init__.py"]


def all_files(root):
    """The pack's files and those of tests and benchmarks."""
    rest = [
        path for folder in ("tests", "benchmarks") for path in sorted((root / folder).rglob("*.py"))
    ]
    return pack_files(root) + [path for path in rest if "__pycache__" not in path.parts]


def name_of(root, path):
    return path.relative_to(root).as_posix()


@functools.cache
def parse(text):
    return ast.parse(text)


def tree_of(path):
    return parse(path.read_text(encoding="utf-8"))


def resolve(root, parts):
    """The file of a dotted module inside the pack, or None."""
    base = root.joinpath(*parts)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if parts and candidate.is_file():
            return candidate
    return None


def imports(root, path):
    """Yield (line, dotted name or "", file inside the pack or None) for each import of a file."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module, None
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1]
            parts = start + (node.module or "").split(".") if node.module else start
            for alias in node.names:
                inner = resolve(root, [*parts, alias.name]) or resolve(root, parts)
                if inner is None and not parts:
                    inner = root / "__init__.py"
                yield node.lineno, "", inner or Path("/missing") / ".".join(parts)


def subject(name):
    """The subject of a surf_core file: surf_core/refiner/rope.py -> refiner."""
    return name.split("/")[1].removesuffix(".py")


def third_party_imports(root):
    """Absolute imports go to the standard library or to what the folder may use."""
    for path in pack_files(root):
        name = name_of(root, path)
        folder = max((f for f in THIRD_PARTY if name.startswith(f)), key=len)
        for line, module, _ in imports(root, path):
            top = module.split(".")[0]
            if not top or top in sys.stdlib_module_names or top in THIRD_PARTY[folder]:
                continue
            yield f"{name}:{line} imports {module}"


def host_api_imports(root):
    """The node API has one address, so that pinning it is one edit a file.

    The host's helper for torch.compile is no part of it and has no version.
    """
    for path in pack_files(root):
        for line, module, _ in imports(root, path):
            if module == "comfy_api.torch_helpers":
                continue
            if module.startswith("comfy_api") and module != "comfy_api.latest":
                yield f"{name_of(root, path)}:{line} imports {module}, not comfy_api.latest"


def direction(root):
    """__init__ -> nodes -> nodes/host -> surf_core, leaves first; nothing backwards."""
    for path in pack_files(root):
        name = name_of(root, path)
        for line, _, target in imports(root, path):
            if target is None:
                continue
            if not target.is_relative_to(root):
                yield f"{name}:{line} imports {target.name}, which does not exist"
                continue
            other = name_of(root, target)
            if not allowed(name, other):
                yield f"{name}:{line} imports {other}"


def allowed(name, other):
    """Whether one file of the pack may import another."""
    if name == "__init__.py":
        return other == "nodes/__init__.py"
    if name.startswith("nodes/"):
        if other.startswith("surf_core/"):
            return not other.startswith("surf_core/training/")
        host = "nodes/host/"
        return other.startswith(host) if name.startswith(host) else other.startswith("nodes/")
    if not other.startswith("surf_core/"):
        return False
    if "__init__.py" in (name.removeprefix("surf_core/"), other.removeprefix("surf_core/")):
        return not other.startswith("surf_core/training/")
    mine, theirs = subject(name), subject(other)
    return RANK.get(theirs, 99) <= RANK.get(mine, -1) and (theirs != "training" or mine == theirs)


def room_of(parts):
    """The room of a dotted place in the pack, "" for a file in none; None outside nodes/host."""
    if list(parts[:2]) != ["nodes", "host"]:
        return None
    return parts[2] if len(parts) > 2 and parts[2] in ROOMS else ""


def names_imported(path):
    """The names that a file takes from other modules."""
    nodes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom))
    return {alias.name for node in nodes for alias in node.names}


def modules_of(root, parts, node):
    """The modules that `from parts import ...` takes: files below it, as in `from ..vae import
    memory`, or else itself."""
    door = resolve(root, parts)
    own = names_imported(door) if door else set()
    names = [[*parts, alias.name] for alias in node.names if alias.name not in own]
    return [name for name in names if resolve(root, name)] or [parts]


def host_rooms(root):
    """A room is entered by its front door, and only from a higher room or from nodes."""
    for path in sorted((root / "nodes").rglob("*.py")):
        name = name_of(root, path)
        package = path.relative_to(root).parent.parts
        mine = room_of(package)
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            start = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            start = [part for part in start if part]
            for parts in modules_of(root, start, node):
                theirs = room_of(parts)
                if theirs is None or theirs == mine:
                    continue
                if theirs and len(parts) > 3:
                    yield f"{name}:{node.lineno} imports {'.'.join(parts)}; use its front door"
                if mine is not None and ROOMS[mine] <= ROOMS[theirs]:
                    yield f"{name}:{node.lineno} imports {'.'.join(parts)}, which is not below"


def host_files_have_rooms(root):
    """Every folder of nodes/host is a room that ROOMS ranks, with a front door."""
    folders = {p.name for p in (root / "nodes/host").iterdir() if p.is_dir()} - {"__pycache__"}
    for folder in sorted(folders ^ (set(ROOMS) - {""})):
        yield f"nodes/host/{folder}: not both a folder and a room of ROOMS"
    for folder in sorted(folders):
        if not (root / "nodes/host" / folder / "__init__.py").exists():
            yield f"nodes/host/{folder} has no front door"


def cycles(root):
    """No module reaches itself through imports."""
    graph = {
        path: {
            target
            for _, _, target in imports(root, path)
            if target is not None and target != path and target.is_relative_to(root)
        }
        for path in pack_files(root)
    }
    done, trail = set(), []

    def visit(path):
        if path in trail:
            yield " -> ".join(name_of(root, p) for p in [*trail[trail.index(path) :], path])
        elif path not in done:
            trail.append(path)
            for target in sorted(graph.get(path, ())):
                yield from visit(target)
            trail.pop()
            done.add(path)

    for path in graph:
        yield from visit(path)
