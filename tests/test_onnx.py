"""ONNX nodes and networks: the node tests of the ONNX project, and random ones, against onnxruntime."""

import importlib.util
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import FLOAT32, describe, integers, run

import fastconv
from fastconv.testing import assert_close, assert_exact

onnx = pytest.importorskip("onnx", reason="onnx brings the node tests")

from fastconv.onnx import FUNCTIONS, OPS, REMEMBERED_PLANS, as_options, evaluator  # noqa: E402 (needs onnx)

# The answers that onnx ships were computed in float32: theirs and our rounding errors add up.
SHIPPED = 2 * FLOAT32


def as_call(node, arrays):
    """Return (function, operands, options) of fastconv for a node and its arrays in the node's order."""
    order = (
        ("input", "weight", "offset", "bias", "mask")
        if node.op_type == "DeformConv"
        else ("input", "weight", "bias")
    )
    present = [name for name, given in zip(order, node.input, strict=False) if given]
    operands = dict(zip(present, arrays, strict=True))
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if "auto_pad" in attributes:
        attributes["auto_pad"] = attributes["auto_pad"].decode()
    shapes = operands["input"].shape, operands["weight"].shape
    op, options = as_options(node.op_type, *shapes, **attributes)
    return op, operands, options


@cache
def node_tests():
    """Return {name: (node, inputs, outputs)} of every test of the ONNX project for our operators."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    found = {}
    state = np.random.get_state()  # noqa: NPY002 (the collection seeds NumPy's global generator)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it makes NaN and overflow on purpose, for other operators
            cases = collect_testcases()
    finally:
        np.random.set_state(state)  # noqa: NPY002
    for case in cases:
        if is_ours(case.model):
            found[case.name] = (case.model.graph.node[0], *case.data_sets[0])
    for kind in ("pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            model = onnx.load(Path(case.model_dir, "model.onnx"))
            if is_ours(model):
                found[case.name] = stored_test(model, Path(case.model_dir, "test_data_set_0"))
    return found


def is_ours(model):
    return len(model.graph.node) == 1 and model.graph.node[0].op_type in FUNCTIONS


def stored_test(model, folder):
    """Return (node, inputs, outputs) of a model that lies on disk with its data; weights are in the model."""
    node = model.graph.node[0]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fed = [value.name for value in model.graph.input if value.name not in arrays]
    for number, name in enumerate(fed):
        arrays[name] = read_tensor(folder / f"input_{number}.pb")
    return node, [arrays[name] for name in node.input if name], [read_tensor(folder / "output_0.pb")]


def read_tensor(path):
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def is_whole(arrays):
    return all(np.array_equal(array, np.round(array)) for array in arrays)


@pytest.mark.parametrize(("op_type", "least"), [("Conv", 33), ("ConvTranspose", 14), ("DeformConv", 4)])
def test_node_tests_of_the_onnx_project(backend, op_type, least):
    done = 0
    for name, (node, arrays, outputs) in sorted(node_tests().items()):
        if node.op_type != op_type:
            continue
        op, operands, options = as_call(node, arrays)
        text = f"{name}: {describe(op, **operands, **options)}"
        actual = run(backend, op, **operands, **options)
        if is_whole([*arrays, *outputs]):
            assert_exact(actual, outputs[0], text)
        else:
            assert_close(actual, outputs[0], SHIPPED, text)
        done += 1
    assert done >= least, f"onnx brought {done} tests for {op_type}, fewer than it used to"


def random_node(op_type, seed):
    """Return a node with attributes drawn at random, and its arrays of whole numbers."""
    rng = np.random.default_rng([seed, list(FUNCTIONS).index(op_type)])
    ndim = 2 if op_type == "DeformConv" else int(rng.integers(1, 4))
    groups = int(rng.integers(1, 4))
    c, o = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 9))
    kernel, strides = rng.integers(1, 4, ndim), rng.integers(1, 4, ndim)
    dilations = rng.integers(1, 3, ndim)
    auto_pad = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")[seed % 4]
    if auto_pad.startswith("SAME"):
        dilations[:] = 1  # onnxruntime refuses others here,
        strides = np.minimum(strides, kernel)  # and adds no zeros at the end of a transposed convolution
    span = dilations * (kernel - 1) + 1
    size = span + rng.integers(0, (40, 9, 5)[ndim - 1], ndim)
    pads = np.concatenate([rng.integers(0, span), rng.integers(0, span)])
    attributes = {"strides": strides, "dilations": dilations, "kernel_shape": kernel, "group": groups}
    x = integers(rng, (2, c, *size), np.float32)
    first, second = (c, o // groups) if op_type == "ConvTranspose" else (o, c // groups)
    arrays = [x, integers(rng, (first, second, *kernel), np.float32)]
    names = ["X", "W"]
    if op_type == "DeformConv":
        attributes |= {
            "pads": pads,
            "offset_group": int(rng.choice([d for d in range(1, c + 1) if c % d == 0])),
        }
        out = (size + pads[:ndim] + pads[ndim:] - span) // strides + 1
        taps = attributes["offset_group"] * int(np.prod(kernel))
        arrays.append((rng.integers(-12, 13, (2, 2 * taps, *out)) / 4).astype(np.float32))
        arrays += [integers(rng, (o,), np.float32), integers(rng, (2, taps, *out), np.float32)]
        names = ["X", "W", "offset", "B", "mask"]
        if seed % 3 == 0:
            names, arrays = names[:3], arrays[:3]
        elif seed % 3 == 1:
            names[3], arrays = "", [*arrays[:3], arrays[4]]
    else:
        if auto_pad != "NOTSET":
            attributes["auto_pad"] = auto_pad
        else:
            attributes["pads"] = pads
        if op_type == "ConvTranspose" and auto_pad == "NOTSET":
            # padding that leaves something, and at most what a kernel can have touched at the end
            natural = strides * (size - 1) + span
            attributes["pads"] = np.minimum(pads, np.tile((natural - 1) // 2, 2))
            attributes["output_padding"] = np.array([rng.integers(0, s) for s in strides])
            if seed % 8 == 4:
                del attributes["pads"], attributes["output_padding"]
                attributes["output_shape"] = np.maximum(1, natural - rng.integers(0, 3, ndim))
        if rng.integers(0, 2):
            arrays.append(integers(rng, (o,), np.float32))
            names.append("B")
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in attributes.items()
    }
    return onnx.helper.make_node(op_type, names, ["Y"], **plain), arrays


@pytest.mark.parametrize("op_type", FUNCTIONS)
def test_random_nodes_equal_onnxruntime(backend, op_type):
    for seed in range(24):
        node, arrays = random_node(op_type, seed)
        op, operands, options = as_call(node, arrays)
        actual = run(backend, op, **operands, **options)
        assert_exact(
            actual, runtime_answer(op_type, seed), f"seed {seed}: {describe(op, **operands, **options)}"
        )


@cache
def runtime_answer(op_type, seed):
    """Return what onnxruntime gives for a random node; the same for every backend of ours."""
    node, arrays = random_node(op_type, seed)
    fed = dict(zip([name for name in node.input if name], arrays, strict=True))
    return run_in_onnxruntime(model_of(node, arrays), fed)[0]


def model_of(node, arrays):
    """Return a network of one node."""
    names = [name for name in node.input if name]
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [
            onnx.helper.make_tensor_value_info(name, float32, array.shape)
            for name, array in zip(names, arrays, strict=True)
        ],
        [onnx.helper.make_tensor_value_info("Y", float32, None)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)


def run_in_onnxruntime(model, fed):
    """Return the outputs that onnxruntime computes on one thread."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # the shape of Y is left open on purpose
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)


@pytest.mark.parametrize("op_type", FUNCTIONS)
def test_the_evaluator_runs_nodes_on_our_kernels(op_type, monkeypatch):
    ran = []
    function = fastconv.functional.find_call
    monkeypatch.setattr(fastconv.functional, "find_call", lambda *a: ran.append(a[0]) or function(*a))
    for seed in range(8):
        node, arrays = random_node(op_type, seed)
        fed = dict(zip([name for name in node.input if name], arrays, strict=True))
        (actual,) = evaluator(model_of(node, arrays)).run(None, fed)
        assert_exact(actual, runtime_answer(op_type, seed), f"seed {seed}")
    assert len(ran) == 8
    assert all(op.startswith(FUNCTIONS[op_type]) for op in ran)


def small_network(rng):
    """Return a network with every kind of convolution, on images of 3 channels."""
    make, nodes, weights = onnx.helper.make_node, [], {}

    def layer(op_type, given, shape, name, *, extra=(), activation="Relu", **attributes):
        fan_in = np.prod(shape[1:]) if op_type != "ConvTranspose" else shape[0] * np.prod(shape[2:]) / 4
        weights[f"{name}_w"] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        nodes.append(make(op_type, [given, f"{name}_w", *extra], [f"{name}_y"], **attributes))
        nodes.append(make(activation, [f"{name}_y"], [name]))
        return name

    x = layer("Conv", "x", (8, 3, 3, 3), "stem", auto_pad="SAME_LOWER", strides=[2, 2])
    x = layer("Conv", x, (8, 1, 5, 5), "depthwise", auto_pad="SAME_UPPER", group=8)
    x = layer("Conv", x, (12, 4, 3, 2), "grouped", pads=[2, 0, 1, 1], dilations=[1, 2], group=2)
    offset = layer("Conv", x, (18, 12, 3, 3), "offset", pads=[1, 1, 1, 1], activation="Tanh")
    x = layer("DeformConv", x, (8, 12, 3, 3), "deformed", extra=[offset], pads=[1, 1, 1, 1])
    x = layer("ConvTranspose", x, (8, 4, 4, 4), "up", strides=[2, 2], pads=[1, 1, 1, 1])
    x = layer(
        "ConvTranspose", x, (4, 2, 3, 3), "same", auto_pad="SAME_UPPER", strides=[2, 2], activation="Sigmoid"
    )
    float32, info = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [info("x", float32, ["n", 3, "h", "w"])],
        [info(x, float32, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("size", [(2, 3, 20, 26), (1, 3, 31, 17)])
def test_a_network_equals_onnxruntime(size):
    rng = np.random.default_rng(size)
    model, x = small_network(rng), rng.standard_normal(size).astype(np.float32)
    (expected,) = run_in_onnxruntime(model, {"x": x})
    (actual,) = evaluator(model).run(None, {"x": x})
    assert actual.dtype == np.float32
    assert_close(actual, expected, 10 * FLOAT32, "network")


def planned(network):
    """Return how many plans each convolution of a network keeps."""
    return [len(node.plans) for node in network.rt_nodes_ if isinstance(node, OPS)]


@pytest.mark.parametrize("stored", ["initializer", "constant"])
def test_weights_of_the_network_are_packed_once(stored, monkeypatch):
    model = small_network(np.random.default_rng(0))
    if stored == "constant":
        tensors = list(model.graph.initializer)
        constants = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
        nodes = [*constants, *model.graph.node]
        del model.graph.initializer[:], model.graph.node[:]
        model.graph.node.extend(nodes)
    network, made = evaluator(model), []
    plan = fastconv.onnx.plan
    monkeypatch.setattr(
        fastconv.onnx, "plan", lambda *args, **options: made.append(args[0]) or plan(*args, **options)
    )
    monkeypatch.setattr(fastconv.functional, "find_call", None)  # no call packs them again
    sizes = [(16 + 4 * n, 20) for n in range(REMEMBERED_PLANS + 2)]
    for size in (*sizes[:2], *sizes[:2]):
        network.run(None, {"x": np.ones((1, 3, *size), np.float32)})
    assert len(made) == 14  # 7 layers, 2 sizes
    assert planned(network) == [2] * 7
    for size in sizes:
        network.run(None, {"x": np.ones((1, 3, *size), np.float32)})
    assert planned(network) == [REMEMBERED_PLANS] * 7


def test_what_is_chosen_around_a_run_holds_for_it():
    model, x = small_network(np.random.default_rng(0)), np.ones((1, 3, 16, 20), np.float32)
    network = evaluator(model)
    network.run(None, {"x": x})
    with fastconv.use_backend("numpy"):
        network.run(None, {"x": x})
    for node in network.rt_nodes_:
        if isinstance(node, OPS):
            assert {found.kernel.backend for found in node.plans.values()} > {"numpy"}


def test_weights_that_are_fed_may_change():
    node, arrays = random_node("Conv", 1)
    fed = dict(zip([name for name in node.input if name], arrays, strict=True))
    network = evaluator(model_of(node, arrays))
    (before,) = network.run(None, fed)
    np.multiply(fed["W"], 2, out=fed["W"])
    (after,) = network.run(None, fed)
    bias = fed.get("B", np.zeros(1, np.float32)).reshape(-1, *(1,) * (before.ndim - 2))
    assert_exact(after - bias, 2 * (before - bias))
    assert planned(network) == [0]
    model = small_network(np.random.default_rng(0))
    x, network = np.ones((1, 3, 16, 20), np.float32), evaluator(model)
    (own,) = network.run(None, {"x": x})
    stem = onnx.numpy_helper.to_array(model.graph.initializer[0])
    (other,) = network.run(None, {"x": x, "stem_w": 0 * stem})
    assert np.abs(own - other).max() > 1e-3
    (again,) = network.run(None, {"x": x})
    assert_exact(again, own)


def test_own_operators_count_before_ours():
    class Conv(OPS[0]):
        def _run(self, X, W, B=None, **attributes):
            return (np.zeros_like(X),)

    node, arrays = random_node("Conv", 0)
    fed = dict(zip([name for name in node.input if name], arrays, strict=True))
    (found,) = evaluator(model_of(node, arrays), new_ops=[Conv]).run(None, fed)
    assert not found.any()


@pytest.mark.parametrize(
    ("attributes", "shapes", "text"),
    [
        (dict(kernel_shape=[2, 2]), ((1, 1, 8, 8), (1, 1, 3, 3)), "kernel_shape is"),
        (dict(pads=[1, 1]), ((1, 1, 8, 8), (1, 1, 3, 3)), "pads must have 4 numbers"),
        (dict(auto_pad="SAME"), ((1, 1, 8, 8), (1, 1, 3, 3)), "auto_pad must be one of"),
        ({}, ((1, 1, 8, 8, 8, 8), (1, 1, 3, 3, 3, 3)), "1, 2 or 3 spatial axes"),
    ],
)
def test_attributes_that_do_not_fit_are_told(attributes, shapes, text):
    with pytest.raises(ValueError, match=text):
        as_options("Conv", *shapes, **attributes)


def ocr_model(name):
    """Return a network of the OCR package rapidocr, in an opset whose BatchNormalization onnx computes right."""
    from onnx.version_converter import convert_version

    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None:
        pytest.skip("rapidocr-onnxruntime ships the OCR networks")
    folder = Path(spec.submodule_search_locations[0], "models")
    return convert_version(onnx.load(folder / name), 15)


def written(text, width=320):
    """Return a line of text as the OCR networks take it."""
    pytest.importorskip("PIL", reason="pillow writes the text")
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib ships the font")
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 34)
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((8, 3), text, fill="black", font=font)
    return np.moveaxis(np.asarray(image, np.float32) / 127.5 - 1, -1, 0)[None]


def decoded(scores, model):
    """Return the text of a recognition network's output: the best character a step, repetitions and blanks left out."""
    (stored,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    characters = ["", *stored.splitlines(), " "]
    best = scores[0].argmax(axis=-1)
    return "".join(characters[now] for before, now in pairwise((-1, *best)) if now != before)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in onnx's own Sigmoid
def test_an_ocr_network_reads_the_same_text():
    model, x = ocr_model("ch_PP-OCRv4_rec_infer.onnx"), written("fast convolution")
    (expected,) = run_in_onnxruntime(model, {"x": x})
    (actual,) = evaluator(model).run(None, {"x": x})
    assert decoded(actual, model) == decoded(expected, model) == "fast convolution"
    assert np.abs(actual - expected).max() < 1e-3  # probabilities


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_an_ocr_network_finds_the_same_place():
    model, x = ocr_model("ch_PP-OCRv4_det_infer.onnx"), written("where is it?")
    x = np.pad(x, ((0, 0), (0, 0), (48, 0), (0, 0)), constant_values=1)
    (expected,) = run_in_onnxruntime(model, {"x": x})
    (actual,) = evaluator(model).run(None, {"x": x})
    assert np.abs(actual - expected).max() < 1e-3
    assert (expected > 0.5).any()
    assert not (expected[..., :40, :] > 0.5).any()
