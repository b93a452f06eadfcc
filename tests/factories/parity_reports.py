"""Parity reports as hybrid-export writes them, for bundles made without it."""


def parity_report(precision="fp32", passed=True, **checks):
    """Return a parity report as hybrid-export writes it, of ONNX Runtime and OpenVINO.

    ``checks`` adds OpenVINO's other precisions: ``bf16=True`` for one that passed.
    """

    def check(backend, hint, passed):
        return {
            "passed": passed,
            "backend": backend,
            "device": "cpu",
            "precision_hint": hint,
            "tolerances": {"logits_max_abs": 1e-4},
        }

    first = check("onnxruntime", None, passed)
    others = [check("openvino", "fp32", passed)]
    if precision in ("fp16", "bf16"):  # by the evaluator, which is no backend
        first = check(None, None, passed)
        others = [check("openvino", "bf16", passed)] if precision == "bf16" else []
    others += [check("openvino", hint, other) for hint, other in checks.items()]
    return {**first, "also": others}
