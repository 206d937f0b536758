"""Costs: equal to what the matrix holds, to published counts, and to the ratios of the theory."""

import math

import numpy as np
import pytest
from helpers import integers
from samples import rank, sample

import fastconv
from fastconv.problem import CONV, CONV_TRANSPOSE, DEFORM_CONV


@pytest.mark.parametrize("op", CONV + CONV_TRANSPOSE)
def test_multiply_adds_on_the_image_are_the_entries_of_the_matrix(op):
    arrays = sample(op)
    shape, weight = arrays["input"].shape, arrays["weight"]
    found = fastconv.cost(op, shape, weight, padding=1)
    assert found.macs_inside == fastconv.matrix(op, shape, weight, padding=1).nnz
    assert 0 < found.macs_inside < found.macs
    assert found.sampling_macs == 0


@pytest.mark.parametrize("op", DEFORM_CONV)
def test_a_deformable_layer_also_interpolates(op):
    arrays = sample(op)
    shape, weight, offset = arrays["input"].shape, arrays["weight"], arrays["offset"]
    points = shape[0] * math.prod(weight.shape[2:]) * math.prod(offset.shape[2:])
    found = fastconv.cost(op, shape, weight, offset=offset, mask=arrays["mask"])
    still = fastconv.cost(op, shape, weight, offset=0 * offset)
    assert still.macs_inside == still.macs == found.macs == points * 4 * 6
    assert found.macs_inside < found.macs
    assert found.sampling_macs == points * 4 * 2 ** rank(op)
    assert found.bytes == still.bytes + arrays["mask"].nbytes


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_that_copies_pixels_is_on_the_image(mode):
    found = fastconv.cost("conv1d", (1, 8), (1, 1, 3), padding=1, padding_mode=mode)
    assert found.macs == found.macs_inside == 24
    assert fastconv.cost("conv1d", (1, 8), (1, 1, 3), padding=1).macs_inside == 22


def test_sampled_points_count_where_they_lie():
    shape = (1, 1, 1, 5)
    whole = fastconv.cost("deform_conv2d", shape, (3, 1, 1, 1), offset=(1, 2, 1, 5))
    assert whole.macs_inside == whole.macs == 15
    offset = np.zeros((1, 2, 1, 5))
    offset[0, 0, 0, :2] = 9.0
    part = fastconv.cost("deform_conv2d", shape, (3, 1, 1, 1), offset=offset)
    assert (part.macs, part.macs_inside) == (15, 9)
    unknown = fastconv.cost("deform_conv2d", shape, (3, 1, 1, 1))
    assert unknown.macs_inside == 15
    assert unknown.bytes == 4 * (5 + 3 + 15 + 10)


def test_relatives_of_the_deformable_convolution():
    shape, size = (2, 4, 7, 6), 7 * 6
    weightless = fastconv.cost("dcnv3", shape, kernel_size=3, padding=1, remove_center=True, offset_groups=2)
    assert weightless.parameters == 0
    assert weightless.macs == 2 * 4 * size * 8
    assert weightless.sampling_macs == 4 * weightless.macs
    assert weightless.macs_inside == 2 * 4 * (20 * 8 + 18 * 5 + 4 * 3)  # inside, edges, corners
    assert weightless.bytes == 4 * 2 * size * (4 + 4 + 2 * 8 * 3)
    offset = np.full((2, 8, 7, 6), 0.5)
    back = fastconv.cost("deform_conv_transpose2d", shape, (4, 3, 2, 2), offset=offset, bias=True)
    assert back.parameters == 4 * 3 * 4 + 3
    assert back.macs == back.macs_inside == 2 * 4 * size * 3 * 4
    assert back.sampling_macs == 2 * 3 * size * 4 * 4
    far = fastconv.cost("deform_conv_transpose2d", shape, (4, 3, 2, 2), offset=offset + 99)
    assert far.macs_inside == 0


def test_groups_divide_parameters_and_work():
    standard = fastconv.cost("conv2d", (1, 64, 28, 28), (128, 64, 3, 3), padding=1)
    for g in (2, 4, 64):
        grouped = fastconv.cost("conv2d", (1, 64, 28, 28), (128, 64 // g, 3, 3), padding=1, groups=g)
        assert grouped.parameters * g == standard.parameters
        assert grouped.macs * g == standard.macs
        assert grouped.macs_inside * g == standard.macs_inside
        # The traffic of the images stays: the gain in time is smaller than in work.
        assert grouped.intensity < standard.intensity
        assert grouped.bytes > standard.bytes / g


def test_separable_against_standard():
    c, o, k = 64, 128, 3
    shape = (1, c, 28, 28)
    standard = fastconv.cost("conv2d", shape, (o, c, k, k), padding=1)
    separable = fastconv.cost("conv2d", shape, (c, 1, k, k), padding=1, groups=c) + fastconv.cost(
        "conv2d", shape, (o, c, 1, 1)
    )
    assert separable.macs / standard.macs == pytest.approx(1 / o + 1 / k**2, rel=1e-15)
    assert separable.parameters == c * k * k + c * o


ALEXNET = {
    # Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012: input, O, kernel,
    # groups, options.
    "conv1": ((3, 227, 227), 96, 11, 1, dict(stride=4)),
    "conv2": ((96, 27, 27), 256, 5, 2, dict(padding=2)),
    "conv3": ((256, 13, 13), 384, 3, 1, dict(padding=1)),
    "conv4": ((384, 13, 13), 384, 3, 2, dict(padding=1)),
    "conv5": ((384, 13, 13), 256, 3, 2, dict(padding=1)),
}
ALEXNET_COUNTS = {  # parameters with biases, multiply-adds
    "conv1": (34_944, 105_415_200),
    "conv2": (307_456, 223_948_800),
    "conv3": (885_120, 149_520_384),
    "conv4": (663_936, 112_140_288),
    "conv5": (442_624, 74_760_192),
}


def alexnet(name, groups=None):
    shape, o, k, split, options = ALEXNET[name]
    groups = groups or split
    weight = (o, shape[0] // groups, k, k)
    return fastconv.cost("conv2d", shape, weight, bias=True, groups=groups, **options)


def test_alexnet_and_its_split_over_two_gpus():
    found = {name: alexnet(name) for name in ALEXNET}
    assert {name: (c.parameters, c.macs) for name, c in found.items()} == ALEXNET_COUNTS
    total = sum(list(found.values())[1:], start=found["conv1"])
    assert (total.parameters, total.macs) == (2_334_080, 665_784_864)
    for name in ("conv2", "conv4", "conv5"):
        whole = alexnet(name, groups=1)
        biases = ALEXNET[name][1]
        assert whole.macs == 2 * found[name].macs
        assert whole.parameters - biases == 2 * (found[name].parameters - biases)


def test_arrays_and_shapes_cost_the_same():
    weight = integers(np.random.default_rng(0), (6, 4, 3, 3), np.float64)
    by_array = fastconv.cost("conv2d", (2, 4, 9, 8), weight, bias=True)
    by_shape = fastconv.cost("conv2d", (2, 4, 9, 8), weight.shape, bias=True, dtype=np.float64)
    assert by_array == by_shape
    assert by_array.bytes == 8 * (2 * 4 * 72 + weight.size + 6 + 2 * 6 * 42)
    transposed = fastconv.cost("conv_transpose2d", (4, 9, 8), (4, 3, 3, 3), groups=2, bias=True)
    assert transposed.parameters == 4 * 3 * 9 + 6


def test_what_does_not_fit_is_told():
    with pytest.raises(fastconv.ShapeError, match="weight has 2 input channels per group"):
        fastconv.cost("conv2d", (3, 8, 8), (4, 2, 3, 3))
    with pytest.raises(TypeError, match="mask must be an array or a shape"):
        fastconv.cost("deform_conv2d", (3, 8, 8), (4, 3, 3, 3), mask=True)
    with pytest.raises(ValueError, match="dcnv4 has no bias"):
        fastconv.cost("dcnv4", (3, 8, 8), kernel_size=3, bias=True)
    with pytest.raises(ValueError, match="belong to deformable"):
        fastconv.cost("conv2d", (3, 8, 8), (4, 3, 3, 3), offset_groups=1)
