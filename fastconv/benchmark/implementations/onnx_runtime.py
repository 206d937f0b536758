"""ONNX Runtime: a session of one node, weights as constants, buffers bound beforehand."""

from typing import Any

import numpy as np

from ..case import Case, Runner
from . import PREPARED, Implementation

OPSET = 22
OPERATORS = {
    "conv": "Conv",
    "conv_transpose": "ConvTranspose",
    "deform_conv": "DeformConv",
    "separable_conv": "Conv",
}


def model(case: Case, opset: int = OPSET) -> bytes:
    """Return a model of one node: the input (and the offset and mask) come in, the weights are constants.

    For a separable convolution there is a second one.
    """
    from onnx import TensorProto, helper, numpy_helper

    problem, workload = case.problem, case.workload
    kind = TensorProto.FLOAT if case.dtype == "float32" else TensorProto.DOUBLE
    fed = [name for name in ("input", "offset", "mask") if name in case.operands]
    attributes: dict[str, Any] = {
        "kernel_shape": problem.kernel_size,
        "strides": problem.stride,
        "dilations": problem.dilation,
        "group": problem.groups,
        "pads": [before for before, _ in problem.padding] + [after for _, after in problem.padding],
    }
    inputs = ["input", "weight"]
    if workload.variant == "conv_transpose":
        attributes["output_padding"] = problem.output_padding
    if workload.variant == "deform_conv":
        attributes["offset_group"] = problem.offset_groups
        inputs += ["offset", *(["", "mask"] if problem.mask else [])]
    last = ["between"] if workload.pointwise else ["output"]
    nodes = [helper.make_node(OPERATORS[workload.variant], inputs, last, **attributes)]
    weights = {"weight": case.operands["depthwise_weight" if workload.pointwise else "weight"]}
    if workload.pointwise:
        weights["mixing"] = case.operands["pointwise_weight"]
        nodes.append(helper.make_node("Conv", ["between", "mixing"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, kind, case.operands[name].shape) for name in fed],
        [helper.make_tensor_value_info("output", kind, problem.output_shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    # IR 10 is read by every version that has the operators.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return made.SerializeToString()


def build(case: Case, threads: int) -> Runner:
    """Return a run of a session."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    # Its threads may spin between runs, which makes it fast; `measure` waits until they have stopped.
    session = ort.InferenceSession(model(case), options, providers=["CPUExecutionProvider"])
    fed = {node.name: case.operands[node.name] for node in session.get_inputs()}
    output = np.empty(case.problem.output_shape, case.dtype)
    binding = session.io_binding()
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in {**fed, "output": output}.items()
    }
    for name in fed:
        binding.bind_ortvalue_input(name, values[name])
    binding.bind_ortvalue_output("output", values["output"])
    return Runner(lambda: session.run_with_iobinding(binding), lambda _: [values["output"].numpy()])


IMPLEMENTATIONS = [
    Implementation(
        "onnxruntime", "onnxruntime", "onnxruntime", PREPARED, "NCHW", build, "pip install onnxruntime onnx"
    )
]
