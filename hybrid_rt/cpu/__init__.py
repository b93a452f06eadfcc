"""What this CPU really runs, and how fast: probed once in child processes and kept.

from hybrid_rt.cpu import cpu_profile, prepare

prepare("openvino")  # before the import: caps the instruction set if this CPU needs it
print(cpu_profile("openvino").summary())

A CPU's flags do not show which precision is fastest, nor which one runs.
See docs/runtime.md, "The CPU profile". HYBRID_RT_CPU_PROFILE=off skips the probe, and
HYBRID_RT_CPU_PROFILE=FILE takes a profile that ``python -m hybrid_rt --json`` printed.
"""

from hybrid_rt.cpu.machine import cores, processor
from hybrid_rt.cpu.process import cpu_profile, prepare, process_profile, usable, why_unusable
from hybrid_rt.cpu.profile import CpuProfile, Measurement

__all__ = [
    "CpuProfile",
    "Measurement",
    "cores",
    "cpu_profile",
    "prepare",
    "process_profile",
    "processor",
    "usable",
    "why_unusable",
]
