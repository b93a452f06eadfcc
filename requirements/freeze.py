"""Write requirements/dev.txt from the virtual environment that just passed the tests.

.venv/bin/python requirements/freeze.py > requirements/dev.txt
"""

import subprocess
import sys

LINUX_ONLY = ("nvidia-", "cuda-", "triton")
# Installed without their dependencies, from files of their own.
ELSEWHERE = (
    "hybrid-rt",
    "hybrid_rt",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt-rtx",
    "tritonclient",
    "-e ",
)


def main() -> None:
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    print("# Exact versions known to work together on Python 3.11 and Linux x86-64.")
    print("# Written by requirements/freeze.py; `make test` and `make demo` install these.")
    for line in lines:
        if line.lower().replace("_", "-").startswith(tuple(e.replace("_", "-") for e in ELSEWHERE)):
            continue
        marker = '; sys_platform == "linux"' if line.startswith(LINUX_ONLY) else ""
        print(line + marker)


if __name__ == "__main__":
    main()
