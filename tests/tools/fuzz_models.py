"""Mutate ONNX files, open and run each in a child process, and count the outcomes.

python tests/tools/fuzz_models.py --count 2000 --backend onnxruntime

A child runs many mutants; when it dies or hangs, the mutant it was at is counted and the next
child goes on behind it. ``--bundle`` opens the mutants inside a bundle, whose digests stop them.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY = 4 << 30  # bytes of address space above what the libraries take
SECONDS = 20  # for one mutant


def mutate(data: bytes, seed: int) -> bytes:
    """Damage the file for odd seeds; for even ones only its graph, in an intact file."""
    import onnx

    if seed % 2:
        return damage(data, seed)
    model = onnx.load_from_string(data)
    graph = damage(model.graph.SerializeToString(), seed)
    model.ClearField("graph")
    return model.SerializeToString() + b"\x3a" + varint(len(graph)) + graph  # field 7, bytes


def varint(value: int) -> bytes:
    """Return Protobuf's variable-length integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def damage(data: bytes, seed: int) -> bytes:
    """Change, insert, remove or double bytes in a few places."""
    rng = random.Random(seed)
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw))
        kind = rng.randrange(6)
        if kind == 0:
            raw[at] = rng.randrange(256)
        elif kind == 1:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            raw[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif kind == 3:
            del raw[at : at + rng.randrange(1, 5)]
        elif kind == 4:
            end = min(len(raw), at + rng.randrange(1, 40))
            raw[at:at] = raw[at:end]
        else:
            raw[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(raw)


def child(folder: Path, first: int, count: int, backend: str, bundle: bool) -> None:
    """Run mutants first..first+count-1, with a line before and after each."""
    import numpy as np

    from hybrid_rt import HybridEngine, HybridError

    data = (folder / "whole.onnx").read_bytes()
    target = folder / ("bundle" if bundle else "alone") / "model.onnx"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for seed in range(first, first + count):
        target.write_bytes(mutate(data, seed))
        print(f"start {seed}", flush=True)
        try:
            with HybridEngine(target, backend=backend, threads=1) as engine:
                size = engine.spec.preprocess
                images = np.zeros((2, size.height, size.width, 3), np.uint8)
                if images.nbytes > 1 << 26:
                    result = "opens, asks for large images"
                else:
                    engine.predict(images)
                    result = "opens and runs"
        except HybridError as err:
            tidy = len(str(err)) < 2000 and "\n" not in str(err)
            result = type(err).__name__ if tidy else f"UNTIDY {err}"
        except BaseException as err:
            result = f"UNTYPED {type(err).__name__}: {str(err)[:200]}"
        print(f"end {seed} {json.dumps(result)}", flush=True)


def fuzz(folder: Path, count: int, backend: str, *, bundle: bool, first: int = 0):
    """Return the counts of outcomes by name, and the seeds of crashes and hangs."""
    counts: collections.Counter[str] = collections.Counter()
    seeds: dict[str, list[int]] = collections.defaultdict(list)
    at, stop = first, first + count
    while at < stop:
        chunk = min(stop - at, 250)
        command = [sys.executable, __file__, "--child", str(folder), str(at), str(chunk), backend]
        try:
            done = subprocess.run(
                [*command, *(["--bundle"] if bundle else [])],
                capture_output=True,
                text=True,
                timeout=SECONDS + chunk,
            )
            lines, fate = done.stdout.splitlines(), f"CRASH {done.returncode}"
        except subprocess.TimeoutExpired as err:
            output = err.stdout or b""
            lines = (output if isinstance(output, str) else output.decode()).splitlines()
            fate = "HANG"
        ended = -1
        for line in lines:
            if line.startswith("end "):  # the libraries print, too
                _, seed, text = line.split(" ", 2)
                ended, result = int(seed), json.loads(text)
                counts[result] += 1
                if result.startswith("UNT"):
                    seeds[result].append(ended)
        if ended == at + chunk - 1:
            at += chunk
            continue
        dead = max(ended + 1, at)
        counts[fate] += 1
        seeds[fate].append(dead)
        at = dead + 1
    return counts, dict(seeds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--bundle", action="store_true")
    parser.add_argument("--child", nargs=4)
    args = parser.parse_args()
    if args.child:
        folder, first, count, backend = args.child
        child(Path(folder), int(first), int(count), backend, args.bundle)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        counts, seeds = fuzz(
            Path(folder), args.count, args.backend, bundle=args.bundle, first=args.first
        )
    for name, number in counts.most_common():
        print(f"{number:6d}  {name}  {seeds.get(name, '')}")


def prepare(folder: Path) -> None:
    """Make the file to mutate, a folder for lone mutants, and a bundle for the others."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from factories.tiny_onnx import tiny_spec, write_tiny_onnx
    from hybrid_rt.bundle.manifest import Bundle, describe_file

    spec = tiny_spec(size=8)
    whole = write_tiny_onnx(folder / "whole.onnx", spec)
    (folder / "alone").mkdir()
    (folder / "bundle").mkdir()
    Bundle(spec=spec, files={"model.onnx": describe_file(whole, precision="fp32")}).save(
        folder / "bundle"
    )


if __name__ == "__main__":
    main()
