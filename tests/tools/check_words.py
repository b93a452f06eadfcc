"""Find words that the vocabulary replaces: one word for one thing, in code, docs and tests.

python tests/tools/check_words.py [FILE ...]    # every tracked file by default

Prints ``file:line: word; use …`` for each and exits with 1. ALLOWED lists other uses of a word,
each with its reason.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: Separators between the words of a phrase or of an identifier, also a line break in a comment.
_GAP = r"(?:[\s_-]|\n\s*#:?)+"

#: The words, as regular expressions, and their replacements. A blank is _GAP.
FORBIDDEN = {
    r"pictures?": "image",
    r"films?": "mammogram, or image",
    r"answer(?:s|ed|ing)?": "prediction, output, reply, or the verb that is meant",
    r"confidences?": "probability",
    r"novelt(?:y|ies)": "ood_score, out-of-distribution detector",
    r"foreign": "is_ood, out of distribution",
    r"label sets?|sets? of labels": "prediction_set, prediction set",
    r"certif(?:y|ies|ied|icates?|ication)": "validate, validated, parity report",
    r"limits": "tolerances, bounds, limitations",
    r"lanes?": "execution context",
    r"(?:re)?buil(?:d|ds|ding|t) (?:(?:an?|the|no|one|its|this) )?(?:TensorRT )?plans?": "build an "
    "engine",
    r"batch ranges?": "optimization profile",
    r"receipts?": "dtype report",
    r"ladders?|rungs?": "fallback, retries",
    r"companions?": "sidecar files",
    r"parts?": "subset of a split; chunk, component, field, region elsewhere",
    r"gives?": "returns, raises, has",
    r"able are": "expected one of",
    r"wish(?:es)?": "option",
    r"peers?": "baseline",
    r"floor": "roofline",
}

#: Uses that are not the word that is meant, each with its reason.
ALLOWED = {
    r"(?i)\bconfidence intervals?\b": "statistics' own term",
    r"\b(?:np|math)\.floor\b|\bfloor\(": "the mathematical function",
    r"\.parts\b": "pathlib's attribute",
}

#: Files whose words are not ours, each with its reason.
SKIPPED = {
    r"(^|/)LICENSE$": "a legal text",
    r"(^|/)tensorrt_api\.json$": "names of TensorRT's own Python API",
    r"^requirements/": "names of packages",
    r"(^|/)(check|test)_words\.py$": "this list and its test",
}
_TEXT = re.compile(r"(\.(py|md|toml|json|ya?ml|cff|txt|sh|html|css)|(^|/)[^./]+)$")

#: A word starts after anything but a letter, or at a capital in the middle of a name.
_START = r"(?:(?<![A-Za-z])|(?<=[a-z0-9])(?=[A-Z]))"
_END = r"(?![a-z])(?!(?<=[A-Z])[A-Z])"
_WORDS = [
    (re.compile(f"{_START}(?i:{pattern.replace(' ', _GAP)}){_END}"), use)
    for pattern, use in FORBIDDEN.items()
]


def find(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word, replacement) of each forbidden word in a text."""
    for allowed in ALLOWED:
        text = re.sub(allowed, lambda m: "." * len(m.group()), text)
    for word, use in _WORDS:
        for match in word.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match.group().split()), use


def tracked_files() -> list[Path]:
    """Return the text files that git tracks in the current folder's repository."""
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    return [
        Path(name)
        for name in listing.stdout.splitlines()
        if _TEXT.search(name)
        and not any(re.search(skipped, name) for skipped in SKIPPED)
        and Path(name).is_file()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    files = parser.parse_args(argv).files or tracked_files()
    count = 0
    for path in files:
        found = [(0, word, use) for _, word, use in find(path.as_posix())]
        found += find(path.read_text(encoding="utf-8"))
        for line, word, use in sorted(found):
            count += 1
            print(f"{path}:{line}: {word!r}; use {use}")
    if count:
        print(f"{count} words that the vocabulary replaces", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
