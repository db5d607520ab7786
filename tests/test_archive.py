"""What the registry would publish: the tracked files less .comfyignore, and what must not be in it.

The registry takes `git ls-files` less the patterns of .comfyignore, which are gitignore patterns;
so git itself matches them here. A file not yet tracked but not ignored either counts as tracked.
Every published version is scanned for the words below, and one finding hides the version.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {
    "",
    ".py",
    ".js",
    ".md",
    ".json",
    ".jpg",
    ".png",
    ".svg",
    ".toml",
    ".txt",
    ".safetensors",
}
BINARY = {".jpg", ".png", ".safetensors"}
LARGEST = 10 * 2**20
NEVER = re.compile(
    r"^(tests|benchmarks|docs|\.github|\.ci)/|^surf_core/training/|(^|/)__pycache__/"
    r"|^(Makefile|requirements-dev\.txt|install\.py|prestartup_script\.py)$"
)
MUST = {
    "__init__.py",
    "LICENSE",
    "README.md",
    "nodes/__init__.py",
    "pyproject.toml",
    "requirements.txt",
    "surf_core/__init__.py",
}
# What the words mean to a reader of the report -> how they look in Python or JavaScript.
FORBIDDEN = {
    "runs other programs": r"\bsubprocess\b|\bos\.(system|popen|exec\w*|spawn\w*|fork)\b|\bpty\b",
    "runs text as code": r"(?<![\w.])(eval|exec|compile|__import__)\s*\(",
    "unpickles": r"\bpickle\b|\btorch\.load\b|\bweights_only\b|\bmarshal\b|\bshelve\b",
    "uses the network": (
        r"^\s*(import|from)\s+(requests|urllib|urllib3|http|socket|aiohttp|httpx|ftplib"
        r"|huggingface_hub|websockets?)\b|\.(connect|send)\s*\(|\bfetch\s*\("
    ),
    "changes the environment": r"\bos\.environ\b|\bputenv\b|\bos\.getenv\b",
    "touches bytecode": r"\bCodeType\b|\b__code__\b|\bctypes\b",
    "hides data": r"\bbase64\b|\bb64decode\b|\bzlib\b|\bcodecs\b",
    "installs packages": r"\bpip\s+install\b|\bensurepip\b",
}
BLOB = re.compile(r"[A-Za-z0-9+/=]{200,}")
DELETES = re.compile(r"\brm\s+-[a-z]*r[a-z]*f|\brm\s+-[a-z]*f[a-z]*r")


def git(root, *arguments):
    done = subprocess.run(
        ["git", "-C", str(root), "-c", "core.quotepath=off", "ls-files", "-z", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in done.stdout.split("\0") if name}


def archive(root):
    """Names of the files a user installs, sorted."""
    tracked = git(root, "--cached", "--others", "--exclude-standard")
    pattern_file = f"--exclude-from={root / '.comfyignore'}"
    dropped = git(root, "--cached", "--ignored", pattern_file)
    dropped |= git(root, "--others", "--ignored", pattern_file)
    return sorted(name for name in tracked - dropped if (root / name).exists())


def offences(root):
    """Everything in the archive that must not be there, one line each."""
    names = archive(root)
    for name in sorted(MUST - set(names)):
        yield f"{name} is missing"
    for name in names:
        path = root / name
        if NEVER.search(name):
            yield f"{name} does not belong in the archive"
        if path.is_symlink():
            yield f"{name} is a symbolic link"
            continue
        if path.suffix not in SUFFIXES:
            yield f"{name}: unexpected kind of file"
        if path.stat().st_size > LARGEST:
            yield f"{name} is larger than {LARGEST} bytes"
        if path.suffix not in BINARY:
            yield from words(name, path.read_text(encoding="utf-8"))


def words(name, text):
    """The offending words of one text file."""
    if BLOB.search(text):
        yield f"{name} hides data: 200 characters without a break"
    if DELETES.search(text):
        yield f"{name} deletes folders"
    if Path(name).suffix not in (".py", ".js"):
        return
    for meaning, pattern in FORBIDDEN.items():
        for found in re.finditer(pattern, text, re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{name}:{line} {meaning}: {found.group().strip()}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout under git, to plant violations in."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of tracked files")
    target = tmp_path_factory.mktemp("checkout")
    for name in git(ROOT, "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    subprocess.run(["git", "init", "--quiet", str(target)], check=True)
    return target


def test_the_archive_holds_nothing_it_should_not(checkout):
    assert list(offences(checkout)) == []


def test_the_archive_keeps_workflows_help_pages_and_weights(checkout):
    names = set(archive(checkout))
    kinds = ("workflows/*.json", "workflows/*.jpg", "web/docs/**/*.*", "locales/*/*.json")
    for pattern in (*kinds, "README*.md", "**/*.safetensors"):
        on_disk = {path.relative_to(checkout).as_posix() for path in checkout.glob(pattern)}
        kept = {name for name in on_disk if not NEVER.search(name)}
        assert kept <= names


def test_tracked_and_untracked_files_are_ignored_alike(checkout):
    before = archive(checkout)
    subprocess.run(["git", "-C", str(checkout), "add", "--all"], check=True)
    assert archive(checkout) == before


# (planted file, its text, what must be said); a folder that .comfyignore drops gives no offence.
PLANTED = [
    ("surf_core/planted.py", "import subprocess\n", "runs other programs"),
    ("nodes/planted.py", "import os\nos.system('ls')\n", "runs other programs"),
    ("nodes/planted.py", "x = eval('1')\n", "runs text as code"),
    ("nodes/planted.py", "exec('x = 1')\n", "runs text as code"),
    ("surf_core/planted.py", "import pickle\n", "unpickles"),
    ("surf_core/planted.py", "torch.load('x')\n", "unpickles"),
    ("nodes/planted.py", "import requests\n", "uses the network"),
    ("nodes/planted.py", "    from urllib.request import urlopen\n", "uses the network"),
    ("nodes/planted.py", "import socket\n", "uses the network"),
    ("nodes/planted.py", "import http.client\n", "uses the network"),
    ("web/js/planted.js", "fetch('/x')\n", "uses the network"),
    ("nodes/planted.py", "os.environ['X'] = '1'\n", "changes the environment"),
    ("surf_core/planted.py", "DATA = '" + "QUJD" * 60 + "'\n", "hides data"),
    ("surf_core/planted.py", "import base64\n", "hides data"),
    ("web/docs/planted.md", "rm -rf models\n", "deletes folders"),
    ("surf_core/tiny/planted.pt", "", "unexpected kind of file"),
    ("surf_core/tiny/planted.ckpt", "", "unexpected kind of file"),
    ("install.py", "", "does not belong"),
    ("tests/planted.py", "import subprocess\n", None),
    ("benchmarks/planted.py", "import subprocess\n", None),
    ("surf_core/training/planted.py", "import subprocess\n", None),
    (".github/workflows/planted.yml", "run: rm -rf .\n", None),
    ("nodes/fine.py", "model.eval()\nre.compile('x')\ntorch.compile(model)\n", None),
]


@pytest.mark.parametrize(
    ("name", "text", "expected"), PLANTED, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(PLANTED)]
)
def test_the_archive_rule_sees_a_planted_violation(checkout, name, text, expected):
    path = checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        said = [line for line in offences(checkout) if name in line]
    finally:
        path.unlink()
    assert any(expected in line for line in said) if expected else said == []


def test_a_missing_ignore_pattern_is_seen(checkout):
    path = checkout / ".comfyignore"
    before = path.read_text()
    path.write_text(before.replace("/surf_core/training/\n", ""))
    try:
        said = list(offences(checkout))
    finally:
        path.write_text(before)
    assert any(line.startswith("surf_core/training/") for line in said)


def test_requirements_leave_the_hosts_packages_alone():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert lines == ["einops", "safetensors>=0.4.2", "kornia>=0.7.2"]
