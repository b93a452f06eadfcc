"""Compare the ratios of a run with those kept in the repository.

    python -m benchmarks.compare benchmarks/results/results.json benchmarks/baseline.json
    python -m benchmarks.compare RESULTS BASELINE --update

Ratios only, never absolute times: they hold across machines of one kind. Exit code 1 names every
ratio that fell by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 0.10


def machine_kind(results: dict[str, Any]) -> str:
    """Ratios are comparable within a kind: the preset and the instructions that decide them."""
    machine = results["machine"]
    unit = "amx" if machine["amx"] else "avx512-bf16" if machine["avx512_bf16"] else "other"
    return f"{results['preset']}, {unit}, {machine['cores']} cores"


def ratios_of(results: dict[str, Any]) -> dict[str, float]:
    """``table / row / other`` -> ratio, of our rows."""
    return {
        f"{row['table']} / {row['row']} / {other}": round(ratio, 3)
        for row in results["rows"]
        if row["row"].startswith("hybrid-rt")
        for other, ratio in row["faster_than"].items()
    }


def regressions(new: dict[str, float], old: dict[str, float], tolerance: float) -> list[str]:
    """A line for each ratio that is missing or fell below ``old * (1 - tolerance)``."""
    lines = []
    for name, before in old.items():
        now = new.get(name)
        if now is None:
            lines.append(f"{name}: was {before:.2f}, not measured now")
        elif now < before * (1 - tolerance):
            lines.append(f"{name}: was {before:.2f}, is {now:.2f}")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Fail if a speed ratio fell against the kept ones.",
        epilog="example: python -m benchmarks.compare benchmarks/results/results.json "
        "benchmarks/baseline.json",
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: 0.10")
    parser.add_argument("--update", action="store_true", help="keep these ratios as the baseline")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text())
        kept = json.loads(args.baseline.read_text()) if args.baseline.exists() else {}
        kind, new = machine_kind(results), ratios_of(results)
    except (OSError, ValueError, KeyError, TypeError) as err:
        print(f"compare: cannot read the results or the baseline: {err!r}", file=sys.stderr)
        return 2
    if args.update:
        kept[kind] = new
        args.baseline.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        print(f"kept {len(new)} ratios for {kind}")
        return 0
    if kind not in kept:
        known = "; ".join(kept) or "none"
        print(f"compare: no ratios are kept for {kind} (kept: {known})", file=sys.stderr)
        return 2
    lines = regressions(new, kept[kind], args.tolerance)
    print("\n".join(lines) or f"{len(kept[kind])} ratios, none fell by more than the tolerance")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
