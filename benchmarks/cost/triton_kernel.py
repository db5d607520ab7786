"""What does our Triton kernel compile to? Registers, spills and matrix products, without a GPU.

    python -m benchmarks.cost.triton_kernel
    python -m benchmarks.cost.triton_kernel --target 90 --head 72 --dtype bf16 fp16

Every target's machine code is made by the ptxas that comes with triton, for the tile sizes that the
kernel would choose there. "72 as 64 + 64" is the control: the same kernel with the head padded to
128. A step is one round of the loop over keys: its matrix products, and all its instructions, are
counted in the machine code of one warp. Bytes in the loop are what its spilled registers move.
"""

import argparse
import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.page import provenance

TARGETS = (80, 86, 89, 90, 120)
HEADS = (64, 72, 96, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COLUMNS = (
    "target", "dtype", "head", "queries x keys", "warps", "stages", "registers", "spilled, B",
    "in the loop, B", "shared, KB", "instructions of a step", "matrix products of a step",
    "work / useful",
)  # fmt: skip
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")
PRODUCT = re.compile(r"\b(HG?MMA)\.(\d+x\d+x\d+|1688\d?|16816)(?=[.\s])")
SHAPES = {"1688": (16, 8, 8), "16816": (16, 8, 16)}


class Case(NamedTuple):
    """One kernel to compile."""

    target: int
    """Compute capability, 90 for 9.0."""
    dtype: str
    """A key of DTYPES."""
    channels: int
    """Channels of a head."""
    padded: bool = False
    """True: the control, a tail as wide as the rest."""


def cases(targets: list[int], dtypes: list[str], heads: list[int]) -> list[Case]:
    """What to compile: per target and dtype every head, and that of 72 padded too."""
    return [
        Case(target, dtype, channels, padded)
        for target in targets
        for dtype in dtypes
        for channels in heads
        for padded in ((False, True) if channels == 72 else (False,))
    ]


def build(case: Case) -> tuple[str, bytes, int, dict]:
    """Compile a case; returns ptxas's log, the machine code, shared bytes and the constants."""
    import triton
    from triton.backends.compiler import GPUTarget

    from surf_core.window import triton_kernel as kernel

    capability = divmod(case.target, 10)
    config = kernel.choose(capability, case.channels, DTYPES[case.dtype])
    constants = kernel.constants(case.channels, DTYPES[case.dtype], config)
    constants |= {name: case.channels for name in ("Q_HEAD", "K_HEAD", "V_HEAD", "OUT_HEAD")}
    if case.padded:
        constants["TAIL"] = constants["MAIN"]
    names = kernel.attend.arg_names
    kinds = {"tiles_at": "*i32", "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {
        name: kinds.get(name, f"*{case.dtype}" if name.endswith("_at") else "i32") for name in names
    }
    # What the launcher finds out by itself: addresses and strides are multiples of 16.
    hints = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name] not in ("constexpr", "fp32")
    }
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        made = triton.compile(
            triton.compiler.ASTSource(kernel.attend, signature, constants, hints),
            target=GPUTarget("cuda", case.target, 32),
            options={
                "num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True
            },
        )  # fmt: skip
    return (
        log.getvalue(),
        made.asm["cubin"],
        made.metadata.shared,
        {**config._asdict(), **constants},
    )


def disassemble(code: bytes) -> list[tuple[int, str]]:
    """(address, instruction) of machine code, by the cuobjdump that comes with triton."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(int(address, 16), words) for address, words in INSTRUCTION.findall(text)]


def main_loop(code: list[tuple[int, str]]) -> list[str]:
    """The instructions of the first loop that multiplies matrices: whole steps over the keys."""
    for address, words in code:
        back = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", words)
        if back and int(back[1], 16) <= address:
            body = [text for where, text in code if int(back[1], 16) <= where <= address]
            if any(PRODUCT.search(text) for text in body):
                return body
    raise RuntimeError("the machine code has no loop with matrix products; look at it by hand.")


def products(body: list[str]) -> Counter:
    """Matrix products in some instructions: ("HGMMA", (64, 128, 16)) -> how many."""
    found = [match for text in body if (match := PRODUCT.search(text))]
    return Counter(
        (name, SHAPES.get(shape) or tuple(map(int, shape.split("x")))) for name, shape in
        (match.groups() for match in found)
    )  # fmt: skip


def row(case: Case) -> list[str]:
    """The columns of one case."""
    log, code, shared, chosen = build(case)
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    body = main_loop(disassemble(code))
    moved = [re.search(r"\b(?:STL|LDL)(\.128|\.64)?\b", text) for text in body]
    in_loop = sum({".128": 16, ".64": 8}.get(match[1], 4) for match in moved if match)
    counted = products(body)
    # A warp issues an HMMA, a group of four warps an HGMMA.
    work = sum(
        count * m * n * k * chosen["warps"] // (4 if name == "HGMMA" else 1)
        for (name, (m, n, k)), count in counted.items()
    )
    useful = 2 * chosen["rows"] * chosen["keys"] * case.channels
    if case.dtype == "fp32":
        useful *= 3  # each product is three of TF32
    parts = [chosen["MAIN"], chosen["TAIL"]] if chosen["TAIL"] else [chosen["MAIN"]]
    head = f"{case.channels} as {' + '.join(map(str, parts))}" if len(parts) > 1 else f"{parts[0]}"
    listed = ", ".join(
        f"{count} {name} {'x'.join(map(str, shape))}" for (name, shape), count in counted.items()
    )
    return [
        f"sm{case.target}", case.dtype, head, f"{chosen['rows']} x {chosen['keys']}",
        str(chosen["warps"]), str(chosen["stages"]), str(registers), str(spilled), str(in_loop),
        f"{shared / 1024:.0f}", str(len(body)), listed, f"{work / useful:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", nargs="+", type=int, default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=DTYPES)
    parser.add_argument("--head", nargs="+", type=int, default=list(HEADS))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    if find_spec("triton") is None:
        print("triton is not installed, so there is nothing to compile with; it is for Linux.")
        return
    import triton

    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    for case in cases(args.target, args.dtype, args.head):
        lines.append(f"| {' | '.join(row(case))} |")
    lines += ["", f"Compiled offline, never timed. triton {triton.__version__}. {provenance()}", ""]
    text = "\n".join(lines)
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
