"""OpenCV: its network runner on a model of one layer."""

import numpy as np

from ..case import Case, Inapplicable, Runner
from . import PREPARED, Implementation
from .onnx_runtime import model

OPSET = 11  # its reader is older than ONNX Runtime's


def build(case: Case, threads: int) -> Runner:
    """Return a forward pass of a network read from ONNX."""
    if case.workload.variant in ("deform_conv", "separable_conv"):
        raise Inapplicable(f"no {case.workload.variant}")
    if case.dtype != "float32":
        raise Inapplicable("only float32")
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model(case, OPSET), np.uint8))
    x = case.operands["input"]

    def call() -> np.ndarray:
        net.setInput(x)
        return net.forward()

    return Runner(call, lambda y: [y])


IMPLEMENTATIONS = [
    Implementation(
        "opencv.dnn", "opencv-python-headless", "cv2", PREPARED, "NCHW", build,
        "pip install opencv-python-headless onnx",
    )
]  # fmt: skip
