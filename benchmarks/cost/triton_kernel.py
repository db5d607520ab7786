"""What does our Triton kernel compile to? Registers and spills, without a GPU.

    python -m benchmarks.cost.triton_kernel
    python -m benchmarks.cost.triton_kernel --target 90 --head 72 --dtype bf16 fp16

Every target's machine code is made by the ptxas that comes with triton, for the tile sizes that the
kernel would choose there.
"""

import contextlib
import io
import re
from importlib.util import find_spec
from typing import NamedTuple

import torch

from benchmarks.page import Page, parser, table

TARGETS = (80, 86, 89, 90, 120)
HEADS = (64, 72, 96, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COLUMNS = (
    "target | dtype | head | queries x keys | warps | stages | registers | spilled, B | shared, KB"
)
LEGEND = '"72 as 64 + 64" is the control: the same kernel with the head padded to 128.'


class KernelVariant(NamedTuple):
    """One kernel to compile."""

    target: int
    """Compute capability, 90 for 9.0."""
    dtype: str
    """A key of DTYPES."""
    channels: int
    """Channels of a head."""
    padded: bool = False
    """True: the control, a tail as wide as the rest."""


def build(case: KernelVariant) -> tuple[str, int, dict]:
    """Compile a variant; return ptxas's log, shared bytes and the constants."""
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
        kernel_code = triton.compile(
            triton.compiler.ASTSource(kernel.attend, signature, constants, hints),
            target=GPUTarget("cuda", case.target, 32),
            options={
                "num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True
            },
        )  # fmt: skip
    return log.getvalue(), kernel_code.metadata.shared, {**config._asdict(), **constants}


def row(case: KernelVariant) -> list:
    """Compile a variant and return its columns."""
    log, shared, chosen = build(case)
    spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    parts = [chosen[part] for part in ("MAIN", "TAIL") if chosen[part]]
    head = f"{case.channels} as {' + '.join(map(str, parts))}" if len(parts) > 1 else parts[0]
    return [
        f"sm{case.target}", case.dtype, head, f"{chosen['rows']} x {chosen['keys']}",
        chosen["warps"], chosen["stages"], re.search(r"Used (\d+) registers", log)[1], spilled,
        f"{shared / 1024:.0f}",
    ]  # fmt: skip


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--target", nargs="+", type=int, default=list(TARGETS), choices=TARGETS)
    line.add_argument("--dtype", nargs="+", default=["bf16"], choices=DTYPES)
    line.add_argument("--head", nargs="+", type=int, default=list(HEADS))
    args = line.parse_args()
    if find_spec("triton") is None:
        print("triton is not installed, so there is nothing to compile with; it is for Linux.")
        return
    import triton

    variants = [
        KernelVariant(target, dtype, channels, padded)
        for target in args.target for dtype in args.dtype for channels in args.head
        for padded in ((False, True) if channels == 72 else (False,))
    ]  # fmt: skip
    with Page(__spec__.name, "What the Triton kernel compiles to", args.out, LEGEND) as page:
        how = f"Compiled offline, never timed, by triton {triton.__version__}"
        page.write([*table(COLUMNS, map(row, variants)), "", page.origin(how)])


if __name__ == "__main__":
    main()
