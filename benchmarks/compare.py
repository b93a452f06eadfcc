"""Compare the ratios of a run with those kept in the repository.

    python -m benchmarks.compare benchmarks/results/results.json benchmarks/baseline.json
    python -m benchmarks.compare RESULTS [RESULTS ...] BASELINE --update

Only ratios are compared: unlike times they hold across machines of one kind. With exit code 1 it
names every ratio that fell by more than the tolerance. Runs on a shared machine differ, so several
may be passed: the lowest ratio of them is kept, and a fall counts only if all of them have it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOLERANCE = 0.10


def machine_kind(results: dict[str, Any]) -> str:
    """Return the preset, instructions and cores, within which ratios are comparable."""
    machine = results["machine"]
    unit = "amx" if machine["amx"] else "avx512-bf16" if machine["avx512_bf16"] else "other"
    return f"{results['preset']}, {unit}, {machine['cores']} cores"


def ratios_of(results: dict[str, Any]) -> dict[str, float]:
    """Return ``table / row / other`` -> ratio, of hybrid-rt's rows."""
    return {
        f"{row['table']} / {row['row']} / {other}": round(ratio, 3)
        for row in results["rows"]
        if row["row"].startswith("hybrid-rt")
        for other, ratio in row["faster_than"].items()
    }


def combined(runs: list[dict[str, float]], choose: Callable[..., float]) -> dict[str, float]:
    """Return each ratio by name: ``choose`` (min or max) of the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: choose([run[name] for run in runs if name in run]) for name in names}


def regressions(new: dict[str, float], old: dict[str, float], tolerance: float) -> list[str]:
    """Return a line for each ratio that is missing or fell below ``old * (1 - tolerance)``."""
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
    parser.add_argument(
        "results", type=Path, nargs="+", help="results.json of one or more runs of one machine"
    )
    parser.add_argument("baseline", type=Path, help="the kept ratios")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: 0.10")
    parser.add_argument("--update", action="store_true", help="keep these ratios as the baseline")
    args = parser.parse_args(argv)
    try:
        runs = [json.loads(path.read_text()) for path in args.results]
        kept = json.loads(args.baseline.read_text()) if args.baseline.exists() else {}
        kind, *others = dict.fromkeys(machine_kind(run) for run in runs)
        new = combined([ratios_of(run) for run in runs], min if args.update else max)
    except (OSError, ValueError, KeyError, TypeError) as err:
        print(f"compare: cannot read the results or the baseline: {err!r}", file=sys.stderr)
        return 2
    if others:
        print(f"compare: results of several kinds: {kind}; {'; '.join(others)}", file=sys.stderr)
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
