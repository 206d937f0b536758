"""OpenVINO: a compiled model of one operator, weights as constants, input and output buffers shared."""

from typing import Any

import numpy as np

from ..case import Case, Runner
from . import PREPARED, Implementation


def build(case: Case, threads: int) -> Runner:
    """Return an inference of a compiled model, in float32 throughout, with latency as its aim."""
    import openvino as ov

    fed: list[str] = [name for name in ("input", "offset", "mask") if name in case.operands]
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if case.dtype == "float32" else "f64",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(_model(case, fed), "CPU", config).create_infer_request()
    output = np.empty(case.problem.output_shape, case.dtype)
    for index, name in enumerate(fed):
        request.set_input_tensor(index, ov.Tensor(case.operands[name], shared_memory=True))
    request.set_output_tensor(ov.Tensor(output, shared_memory=True))
    return Runner(lambda: request.infer(), lambda _: [output])


def _model(case: Case, fed: list[str]) -> Any:
    import openvino as ov
    from openvino import opset13 as op

    problem, workload = case.problem, case.workload
    given = [op.parameter(case.operands[name].shape, np.dtype(case.dtype), name) for name in fed]
    strides, dilations = list(problem.stride), list(problem.dilation)
    before, after = [b for b, _ in problem.padding], [a for _, a in problem.padding]
    weight = case.operands["depthwise_weight" if workload.pointwise else "weight"]
    groups = problem.groups
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    if workload.variant == "deform_conv":
        x, offset, *mask = given
        node = op.deformable_convolution(
            x, offset, op.constant(weight), strides, before, after, dilations, *(mask or [None]),
            "EXPLICIT", groups, problem.offset_groups, True,
        )  # fmt: skip
    elif workload.variant == "conv_transpose":
        extra = list(problem.output_padding)
        function, constant = (
            (op.convolution_backprop_data, weight)
            if groups == 1
            else (op.group_convolution_backprop_data, grouped)
        )
        node = function(
            given[0], op.constant(constant), strides, pads_begin=before, pads_end=after, dilations=dilations,
            output_padding=extra,
        )  # fmt: skip
    else:
        function, constant = (op.convolution, weight) if groups == 1 else (op.group_convolution, grouped)
        node = function(given[0], op.constant(constant), strides, before, after, dilations)
    if workload.pointwise:
        ones, none = [1] * problem.ndim, [0] * problem.ndim
        node = op.convolution(node, op.constant(case.operands["pointwise_weight"]), ones, none, none, ones)
    return ov.Model([node], given)


IMPLEMENTATIONS = [
    Implementation("openvino", "openvino", "openvino", PREPARED, "NCHW", build, "pip install openvino")
]
