"""Convolutions of ONNX networks in NumPy: implementations for :class:`onnx.reference.ReferenceEvaluator`.

The evaluator runs any ONNX network with NumPy alone, but its convolutions are slow. With these three classes in their
place they run on the kernels of this package; ``fastconv.use_backend`` and ``fastconv.threads`` choose which, around
the evaluator's ``run``. Weights that belong to the network are packed once for each size of input, as by
:func:`fastconv.plan`. Needs ``pip install 'fastconv[onnx]'``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import config, functional, registry
from .errors import ShapeError, UnsupportedError
from .plan import Plan, plan

try:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
except ImportError as error:
    raise ImportError(f"fastconv.onnx needs onnx ({error}): pip install 'fastconv[onnx]'") from error

__all__ = ["OPS", "Conv", "ConvTranspose", "DeformConv", "as_options", "evaluator"]

FUNCTIONS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "DeformConv": "deform_conv"}
REMEMBERED_PLANS = 4  # of a node, each with packed weights of its own
AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

Sizes = Sequence[int] | None


def evaluator(model: Any, **options: Any) -> ReferenceEvaluator:
    """Return a :class:`onnx.reference.ReferenceEvaluator` whose convolutions run on this package.

    Parameters
    ----------
    model : onnx.ModelProto, path or bytes
        As for the evaluator.
    **options
        Of the evaluator. `new_ops` are added to those of this package, and count before them.

    Returns
    -------
    onnx.reference.ReferenceEvaluator

    Notes
    -----
    Everything else is computed by onnx. Its ``BatchNormalization`` of opsets 9 to 13 takes the statistics from the
    data wherever `momentum` is given, as training does; ``onnx.version_converter.convert_version(model, 15)`` makes
    such networks right.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from onnx import helper
    >>> import fastconv.onnx
    >>> shape = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    >>> node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    >>> graph = helper.make_graph([node], "graph", [shape("x"), shape("w")], [shape("y")])
    >>> network = fastconv.onnx.evaluator(helper.make_model(graph))
    >>> x, w = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    >>> network.run(None, {"x": x, "w": w})[0][0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    own = {op.__name__: op for op in OPS}
    given = list(options.pop("new_ops", None) or ())
    for op in given:
        if op.op_domain == "":
            own.pop(op.__name__, None)
    network = ReferenceEvaluator(model, new_ops=[*given, *own.values()], **options)
    constants = dict(network.rt_inits_)
    for node in network.rt_nodes_:
        if node.onnx_node.op_type == "Constant":
            constants |= zip(node.output, node.run(), strict=True)
        elif isinstance(node, _Convolution):
            node.kept = {name: constants[name] for name in node.input if name in constants}
    return network


def as_options(
    op_type: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    auto_pad: str | None = None,
    dilations: Sizes = None,
    group: int | None = None,
    kernel_shape: Sizes = None,
    pads: Sizes = None,
    strides: Sizes = None,
    output_padding: Sizes = None,
    output_shape: Sizes = None,
    offset_group: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return the name of the function, and its options, that do what a node does.

    Parameters
    ----------
    op_type : str
        ``"Conv"``, ``"ConvTranspose"`` or ``"DeformConv"``.
    input_shape, weight_shape : sequence of int
    auto_pad, dilations, group, kernel_shape, pads, strides, output_padding, output_shape, offset_group
        The node's attributes; None for those it does not have. The groups of ``DeformConv`` follow from the shapes.

    Returns
    -------
    op : str
        Such as ``"conv2d"``.
    options : dict

    Raises
    ------
    ShapeError, ValueError, UnsupportedError
        If an attribute does not fit the shapes, or there are more than three spatial axes.

    Examples
    --------
    >>> from fastconv.onnx import as_options
    >>> as_options("Conv", (1, 3, 8), (4, 3, 3), auto_pad="SAME_LOWER", strides=[2])
    ('conv1d', {'stride': (2,), 'dilation': (1,), 'padding': ((1, 0),), 'groups': 1})
    """
    size, kernel = tuple(input_shape[2:]), tuple(weight_shape[2:])
    ndim = len(size)
    if not 1 <= ndim <= 3 or len(kernel) != ndim:
        raise UnsupportedError(
            f"{op_type} must have 1, 2 or 3 spatial axes, got input {tuple(input_shape)}, weight {tuple(weight_shape)}"
        )
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise ShapeError(
            f"kernel_shape is {tuple(kernel_shape)}, but the weight has shape {tuple(weight_shape)}"
        )
    auto_pad = auto_pad or "NOTSET"
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad must be one of {', '.join(AUTO_PADS)}, got {auto_pad!r}")
    stride, dilation = (tuple(given) if given else (1,) * ndim for given in (strides, dilations))
    given_pads = tuple(pads) if pads else (0,) * 2 * ndim
    extra = tuple(output_padding) if output_padding else (0,) * ndim
    for name, values, wanted in (
        ("strides", stride, ndim),
        ("dilations", dilation, ndim),
        ("pads", given_pads, 2 * ndim),
        ("output_padding", extra, ndim),
    ):
        if len(values) != wanted:
            raise ShapeError(f"{name} must have {wanted} numbers for {ndim} spatial axes, got {values}")
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    options["padding"] = tuple(zip(given_pads[:ndim], given_pads[ndim:], strict=True))
    if op_type != "DeformConv":
        options["groups"] = group or 1
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    upper = auto_pad == "SAME_UPPER"
    if op_type == "ConvTranspose":
        wanted_size = tuple(output_shape[-ndim:]) if output_shape else None
        if wanted_size is None and auto_pad.startswith("SAME"):
            wanted_size = tuple(n * s for n, s in zip(size, stride, strict=True))
        if wanted_size is None:
            options["output_padding"] = extra
        else:  # padding is what makes the output that large; where none can, zeros are added at the end
            axes = zip(size, stride, extra, span, wanted_size, strict=True)
            totals = [max(0, s * (n - 1) + e + w - out) for n, s, e, w, out in axes]
            options |= {"padding": _halves(totals, upper), "output_size": wanted_size}
    elif auto_pad.startswith("SAME"):
        totals = [max(0, (-(-n // s) - 1) * s + w - n) for n, s, w in zip(size, stride, span, strict=True)]
        options["padding"] = _halves(totals, upper)
    elif auto_pad == "VALID":
        options["padding"] = 0
    return f"{FUNCTIONS[op_type]}{ndim}d", options


def _halves(totals: Sequence[int], upper: bool) -> tuple[tuple[int, int], ...]:
    """Return (before, after) for each total; the odd one goes after if `upper`, else before."""
    return tuple((t // 2, t - t // 2) if upper else (t - t // 2, t // 2) for t in totals)


class _Convolution(OpRun):
    """What the operators share: plans where the weights are the network's own, else calls.

    Weights may also be fed to a run, under the name of the network's own too, and change from one to the next.
    """

    op_domain = ""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.kept: dict[
            str, np.ndarray
        ] = {}  # inputs of the node that are part of the network, by their names
        self.plans: dict[Any, Plan] = {}

    def convolve(self, attributes: dict[str, Any], **operands: Any) -> tuple[np.ndarray]:
        x, weight = operands["input"], operands["weight"]
        op, options = as_options(self.onnx_node.op_type, np.shape(x), np.shape(weight), **attributes)
        own = list(map(id, self.kept.values()))
        if all(operands[name] is None or id(operands[name]) in own for name in ("weight", "bias")):
            return (self._planned(op, options, **operands),)
        return (getattr(functional, op)(**operands, **options),)

    def _planned(
        self,
        op: str,
        options: dict[str, Any],
        input: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        **points: Any,
    ) -> np.ndarray:
        offset, mask = points.get("offset"), points.get("mask")
        request, _ = config.requested_backend()
        key = (
            input.shape,
            input.dtype,
            None if offset is None else offset.shape[1],
            mask is None,
            request,
            config.max_isa(),
            config.requested_accuracy(),
            registry.generation,
        )
        found = self.plans.get(key)
        if found is None:
            if offset is not None:
                taps = 2 * int(np.prod(weight.shape[2:]))
                options = options | {"offset_groups": offset.shape[1] // taps, "mask": mask is not None}
            found = plan(op, input.shape, weight, bias, **options, dtype=input.dtype)
            while len(self.plans) >= REMEMBERED_PLANS:
                self.plans.pop(next(iter(self.plans)), None)
            self.plans[key] = found
        return found(input, offset, mask)


class Conv(_Convolution):
    """ONNX ``Conv``: a convolution in 1, 2 or 3 dimensions."""

    def _run(self, X, W, B=None, **attributes):
        return self.convolve(attributes, input=X, weight=W, bias=B)


class ConvTranspose(_Convolution):
    """ONNX ``ConvTranspose``: a transposed convolution in 1, 2 or 3 dimensions."""

    def _run(self, X, W, B=None, **attributes):
        return self.convolve(attributes, input=X, weight=W, bias=B)


class DeformConv(_Convolution):
    """ONNX ``DeformConv``: a deformable convolution."""

    def _run(self, X, W, offset, B=None, mask=None, **attributes):
        return self.convolve(attributes, input=X, weight=W, offset=offset, bias=B, mask=mask)


OPS = (Conv, ConvTranspose, DeformConv)
