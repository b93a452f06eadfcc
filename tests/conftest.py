"""Before any test module imports PyTorch or OpenVINO: the cap that this CPU may need."""

from hybrid_rt.cpu import prepare

for library in ("torch", "openvino"):
    prepare(library)
