"""Say what of a reference survived in a video: python -m surf_core.signature VIDEO REFERENCE."""

import argparse
import json
import sys
from pathlib import Path

from .files import read_video
from .survival import check_rows, compared_rates, survival


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if all went well, 2 if not."""
    parser = argparse.ArgumentParser(prog="python -m surf_core.signature", description=__doc__)
    add = parser.add_argument
    add("video", type=Path, help="the video, such as a refined one")
    add("reference", type=Path, help="its preview, or the same seed at full resolution")
    add("--other", type=Path, help="another seed of the reference, as the floor")
    add("--rows", type=int, default=480, help="rows to compare at, at most; 0: all")
    add("--json", type=Path, help="file to write the numbers to")
    args = parser.parse_args(argv)
    try:
        check_rows(args.rows)
        given = [args.video, args.reference] + ([args.other] if args.other else [])
        videos, rates = zip(*(read_video(path, args.rows) for path in given), strict=True)
        note = compared_rates(rates, [x.shape[2] for x in videos])
        found = survival(*videos, rows=args.rows).with_note(note)
    except ValueError as error:
        print(f"surf_core.signature: {error}", file=sys.stderr)
        return 2
    print(found.text())
    if args.json:
        try:
            args.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n")
        except OSError as error:
            print(f"surf_core.signature: {error}; choose another --json.", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
