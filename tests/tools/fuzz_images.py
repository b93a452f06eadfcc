"""Mutate small image files and read them: typed errors only. Runs as a child process.

    python tests/tools/fuzz_images.py COUNT SEED REPORT

Each of COUNT files is one of tests/assets/images, damaged: bytes flipped, cut, doubled, moved or
taken from another file, numbers set to extremes, PNG check sums made right again. The number of
the file at work is kept in REPORT, so that a crash or a hang can be found and repeated.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from hybrid_rt.errors import ImageError
from hybrid_rt.images import load_pixels
from hybrid_rt.spec import Preprocess

IMAGES = Path(__file__).parents[1] / "assets" / "images"
ADDRESS_SPACE = 6 << 30  # bytes; the child cannot get more
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        kind = int(rng.integers(0, 8))
        at = int(rng.integers(0, len(out)))
        if rng.random() < 0.5:  # half of the damage goes to the header
            at = min(at, int(rng.integers(0, 400)))
        span = int(rng.integers(1, 40))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + span]
        elif kind == 4:
            out[at:at] = out[at : at + span] * int(rng.integers(1, 4))
        elif kind == 5:
            start = int(rng.integers(0, len(other)))
            out[at : at + span] = other[start : start + span]
        elif kind == 6:
            out[at : at + span] = rng.integers(0, 256, span, dtype=np.uint8).tobytes()
        else:
            size, order = int(rng.choice([1, 2, 4])), str(rng.choice(["little", "big"]))
            value = EXTREMES[int(rng.integers(0, len(EXTREMES)))] & (256**size - 1)
            out[at : at + size] = value.to_bytes(size, order)
    return bytes(out)


def with_right_checksums(data: bytes) -> bytes:
    """Return a PNG file with valid chunk checksums, so that the decoder reads the damage."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack(">I", out[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def settings(rng: np.random.Generator) -> Preprocess:
    return Preprocess(
        height=16,
        width=24,
        resize=str(rng.choice(["stretch", "fit", "fill"])),
        crop=str(rng.choice(["none", "breast"])),
        high_bit_depth=str(rng.choice(["full", "minmax"])),
        dicom_window=str(rng.choice(["stored", "minmax"])),
    )


def main(argv: list[str]) -> int:
    count, seed, report = int(argv[0]), int(argv[1]), Path(argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    corpus = {p.name: p.read_bytes() for p in sorted(IMAGES.iterdir())}
    names, files = list(corpus), list(corpus.values())
    for data in files:  # every library is loaded before memory is measured
        try:
            load_pixels(data, Preprocess(height=16, width=16))
        except ImageError:
            continue
    at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, slowest_index = 0.0, -1
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        which, other = (int(n) for n in rng.integers(0, len(files), 2))
        data = mutated(files[which], files[other], rng)
        if names[which].endswith(".png") and rng.random() < 0.7:
            data = with_right_checksums(data)
        if index % 50 == 0:
            report.write_text(json.dumps({"at": index}))
        began = time.perf_counter()
        try:
            pixels = load_pixels(data, settings(rng))
        except ImageError as err:
            outcomes[type(err).__name__] += 1
            if not str(err).startswith("<bytes>: "):
                wrong.append(f"{index} ({names[which]}): message {err}")
        except BaseException as err:  # what the test is about
            wrong.append(f"{index} ({names[which]}): {type(err).__name__}: {err}")
        else:
            outcomes["decoded"] += 1
            if pixels.shape != (16, 24, 3) or pixels.dtype != np.uint8:
                wrong.append(f"{index} ({names[which]}): {pixels.shape} {pixels.dtype}")
        took = time.perf_counter() - began
        if took > slowest:
            slowest, slowest_index = took, index
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = {
        "count": count,
        "outcomes": dict(outcomes),
        "wrong": wrong[:20],
        "slowest_s": round(slowest, 3),
        "slowest_index": slowest_index,
        "start_mib": at_start // 1024,
        "peak_mib": peak // 1024,
    }
    report.write_text(json.dumps(summary))
    print(json.dumps(summary, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
