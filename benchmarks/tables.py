"""Results as text: one table per measure, one line per row, fastest first, with failures."""

from __future__ import annotations

import re
from typing import Any

SHORT = {
    "PyTorch eager fp32": "x eager",
    "ONNX Runtime fp32": "x ORT",
    "OpenVINO default": "x OpenVINO",
    "OpenVINO throughput hint": "x OV hint",
    "hybrid-rt fp32": "x no maps",
    "the library alone": "x alone",
    "PyTorch fp16, CUDA": "x fp16",
    "torch.compile max-autotune fp16, CUDA": "x compiled",
    "ONNX Runtime CUDA": "x ORT CUDA",
}


def format_tables(data: dict[str, Any]) -> str:
    """Return all tables of a results file, for a terminal of 120 columns."""
    machine = data["machine"]
    amx = "with AMX" if machine["amx"] else "without AMX"
    gpu = f"; {machine['gpu']}" if machine.get("gpu") else ""
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {amx}{gpu}; preset {data['preset']}"]
    for name, value in data.get("roofline", {}).items():
        lines.append(f"  {name}: {value:.3g}")
    for table in dict.fromkeys(row["table"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["table"] == table]
        lines += ["", *format_table(table, rows, data)]
    for name, scenario in data.get("loadgen", {}).items():
        lines.append(f"MLPerf LoadGen {name}: {scenario}")
    return "\n".join([*lines, "", *what_ran(data["rows"])])


def what_ran(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each row: the library, device and precision, and the size of its files."""
    lines = {"what ran": "", "-" * 40: ""}
    for row in rows:
        facts = {k: v for k, v in row["ran"].items() if v is not None and not k.startswith("added")}
        size = f", file {row['file_bytes'] / 1e6:.0f} MB" if row.get("file_bytes") else ""
        words = ", ".join(f"{name} {value}" for name, value in facts.items())
        lines.setdefault(row["row"], f"{words}{size}")
    return [f"{name:40} {text}".rstrip() for name, text in lines.items()]


def format_table(table: str, rows: list[dict[str, Any]], data: dict[str, Any]) -> list[str]:
    others = [name for name in SHORT if any(name in row["faster_than"] for row in rows)]
    head = f"{table:40} {'p50 ms':>8} {'p90':>8} {'p99':>8} {'img/s':>8}"
    head += "".join(f" {SHORT[name]:>10}" for name in others)
    head += f" {'roofline':>8} {'gap':>8} {'first s':>8} {'MiB':>6}"
    lines = [head, "-" * len(head)]
    for row in sorted(rows, key=lambda r: r.get("p50_ms", float("inf"))):
        if row["error"]:
            gap = row["parity"].get("logits_max_abs")
            lines.append(f"{row['row']:40} FAILED: {row['error']}, logits off by {gap}")
            continue
        if "p50_ms" not in row:
            continue
        line = f"{row['row']:40} {row['p50_ms']:8.1f} {row['p90_ms']:8.1f} {row['p99_ms']:8.1f}"
        line += f" {row['images_per_s']:8.1f}"
        for name in others:
            ratio = row["faster_than"].get(name)
            line += f" {'-':>10}" if ratio is None else f" {ratio:9.2f}x"
        share = roofline_share(row, data)
        line += f" {'-':>8}" if share is None else f" {share:8.0%}"
        line += f" {row['parity']['logits_max_abs']:8.1e}"
        first = row["first_prediction_s"]
        line += f" {first:8.2f}" if first else f" {'-':>8}"
        memory = row["memory_bytes"]
        line += f" {memory / 2**20:6.0f}" if memory else f" {'-':>6}"
        if "added_ms" in row["ran"]:
            line += f"  adds {row['ran']['added_ms']:+.3f} ms, {row['ran']['added_share']:+.2%}"
        lines.append(line)
    return lines


def roofline_share(row: dict[str, Any], data: dict[str, Any]) -> float | None:
    """Return the time of the model's operations at the machine's rate over the row's time."""
    roofline = data.get("roofline")
    if not roofline or row["table"].startswith("load") or "p50_ms" not in row:
        return None
    rate = roofline.get(f"{computed_in(row)}_operations_per_s")
    if rate is None:
        return None
    return float(roofline["operations"] * row["images"] / rate / (row["p50_ms"] / 1e3))


def computed_in(row: dict[str, Any]) -> str:
    """Return the type a row ran in: float32, float16, bfloat16 or int8, after "cuda_" on a GPU."""
    words = " ".join(str(v) for v in row["ran"].values()).lower() + " " + row["row"].lower()
    where = "cuda_" if "cuda" in str(row["ran"].get("device", "")).lower() else ""
    kinds = {"int8": ("int8",), "bfloat16": ("bf16", "bfloat16"), "float16": ("fp16", "float16")}
    for name, marks in kinds.items():
        if any(re.search(rf"\b{mark}\b", words) for mark in marks):
            return where + name
    return where + "float32"
