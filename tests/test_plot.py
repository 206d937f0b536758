"""Pictures: each draws on the Axes it is given what its text twin says."""

import io
import sys

import numpy as np
import pytest

import fastconv
from fastconv import plot
from fastconv.analysis import affine_offset, effective_field

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

LIMITS = {
    "peak_gflops": {"baseline": {"float32": {"1": 50.0}}},
    "bandwidth_gbs": {"1": {"L1": 100.0, "DRAM": 10.0}},
    "caches": {"L1": 32768},
}
HALF_TURN = affine_offset(3, -np.eye(2), (7, 8))
DEFORMABLE = [{"op": "deform_conv", "kernel": 3, "padding": 1, "offset": HALF_TURN}]


def a_plan(groups=1):
    weight = np.ones((8, 8 // groups, 3, 3), np.float32)
    return fastconv.plan("conv2d", (1, 8, 16, 16), weight, groups=groups, backend="numpy")


CALLS = {
    "matrix": lambda f, **k: f.matrix(fastconv.matrix("conv1d", (1, 5), np.ones((1, 1, 3)), padding=1), **k),
    "receptive_field": lambda f, **k: f.receptive_field(fastconv.receptive_field([{"kernel": 3, "dilation": 2}]), **k),
    "effective_field": lambda f, **k: f.effective_field(fastconv.receptive_field([{"kernel": 3}] * 2), **k),
    "phases": lambda f, **k: f.phases(4, 2, 1, **k),
    "sampling_points": lambda f, **k: f.sampling_points(fastconv.receptive_field(DEFORMABLE, input_size=(7, 8)), **k),
    "intensity": lambda f, **k: f.intensity([a_plan(), a_plan(8)], seconds=[1e-5, 3e-6], limits=LIMITS, **k),
    "roofline": lambda f, **k: f.roofline(a_plan(), seconds=[1e-5], limits=LIMITS, **k),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_windows():
    import matplotlib

    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_every_picture_has_a_twin():
    assert set(plot.__all__) - {"text"} == set(plot.text.__all__) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_it_draws_where_it_is_told(name, ax):
    assert CALLS[name](plot, ax=ax) is ax
    assert ax.images or ax.patches or ax.collections or ax.lines
    ax.figure.savefig(io.BytesIO())


@pytest.mark.parametrize("name", CALLS)
def test_it_makes_a_figure_where_none_is_given(name):
    from matplotlib.axes import Axes

    assert isinstance(CALLS[name](plot), Axes)


@pytest.mark.parametrize("name", CALLS)
def test_the_twin_is_text(name):
    text = CALLS[name](plot.text)
    assert isinstance(text, str)
    assert len(text.splitlines()) > 1
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_entries_and_labels_of_a_matrix(ax):
    a = fastconv.matrix("conv1d", (1, 5), np.array([[[1.0, -2.0, 0.0]]]))
    plot.matrix(a, ax=ax)
    assert ax.get_title() == "3 x 5, 9 entries"  # weights of zero are entries
    assert sorted(text.get_text() for text in ax.texts) == sorted(["1", "-2", "0"] * 3)
    assert np.ma.count(ax.images[0].get_array()) == 9
    assert plot.text.matrix(a.toarray()) == " 1 -2  ·  ·  ·\n ·  1 -2  ·  ·\n ·  ·  1 -2  ·"
    wide = plot.text.matrix(fastconv.matrix("conv1d", (1, 60), np.full((1, 1, 2), 0.125)))
    assert wide.splitlines()[1] == " ".join("·■■" + "·" * 57)


def test_pixels_of_a_field(ax):
    field = fastconv.receptive_field([{"kernel": 3, "dilation": 2, "padding": 2}], input_size=8)
    plot.receptive_field(field, (0, 4), ax=ax)
    assert ax.get_title() == "3 x 5, 6 of 15 pixels"
    assert np.ma.count(ax.images[0].get_array()) == 6
    assert plot.text.receptive_field(field, (0, 4)) == "■ · ■ · ■\n· · · · ·\n■ · ■ · ■"


def test_effective_fields_of_equal_weights_are_the_paths(ax):
    plans = [fastconv.plan_grad("conv2d", (1, 1, 9, 9), np.ones((1, 1, 3, 3)), padding=1, wrt="input")] * 3
    layers = [{"kernel": 3, "padding": 1}] * 3
    field = fastconv.receptive_field(layers, input_size=9)
    box, start = field.paths()
    values = effective_field(plans)
    assert start == (1, 1)
    assert np.array_equal(values[1:8, 1:8], box)
    assert values.sum() == box.sum() == 9**3
    plot.effective_field(values, ax=ax)
    assert ax.images[0].get_array().max() == 1
    assert plot.text.effective_field(field).splitlines()[3][6] == "@"


def test_phases_share_out_the_taps():
    taps = [line.split(" taps ")[1] for line in plot.text.phases(4, 2, 1).splitlines()]
    assert [text.count("(") for text in taps] == [4, 4, 4, 4]
    assert sorted(" ".join(taps).replace(") (", ")|(").split("|")) == sorted(map(str, np.ndindex(4, 4)))
    # An output of phase 0 with one pixel of padding is reached by the odd taps only.
    assert taps[0] == "(1, 1) (1, 3) (3, 1) (3, 3)"
    a = fastconv.matrix("conv_transpose1d", (1, 4), np.arange(4.0).reshape(1, 1, 4), stride=2, padding=1)
    assert set(a.toarray()[2::2][:-1].ravel()) == {0.0, 1.0, 3.0}


def test_points_over_an_image(ax):
    field = fastconv.receptive_field(DEFORMABLE, input_size=(7, 8))
    plot.sampling_points(field, (2, 3), image=np.zeros((3, 7, 8)), ax=ax)
    drawn = ax.collections[-1].get_offsets()
    assert np.allclose(drawn[:, ::-1], [(2 - i, 3 - j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    with pytest.raises(fastconv.ShapeError, match="image must have the field's input size"):
        plot.sampling_points(field, image=np.zeros((3, 8, 8)), ax=ax)
    with pytest.raises(ValueError, match="made with input_size"):
        plot.text.sampling_points(fastconv.receptive_field([{"kernel": 3}]))


def test_a_plan_is_timed_where_no_time_is_given():
    (line,) = plot.text.roofline(a_plan(), limits=LIMITS).splitlines()[1:]
    assert "numpy conv_direct" in line
    deformable = fastconv.plan(
        "deform_conv2d", (2, 6, 6), np.ones((1, 2, 3, 3), np.float32), mask=True, backend="numpy"
    )
    assert "dg1 mask" in plot.text.roofline([deformable], limits=LIMITS)
    with pytest.raises(ValueError, match="one time for each of the 1 plans"):
        plot.text.roofline(a_plan(), seconds=[], limits=LIMITS)


def test_groups_save_work_and_less_time(ax):
    plans = [a_plan(g) for g in (1, 2, 8)]
    limits = LIMITS | {"bandwidth_gbs": {"1": {"L1": 20.0}}}
    plot.intensity(plans, seconds=[8e-6, 5e-6, 3e-6], limits=limits, ax=ax)
    by_work, least, time = (line.get_ydata() for line in ax.lines)
    assert np.allclose(by_work, [8, 4, 1])
    assert np.allclose(time, [8, 5, 3])
    problems = [plan.problem for plan in plans]
    assert np.allclose(least, [max(p.flops / 50e9, p.bytes / 20e9) * 1e6 for p in problems])
    assert [text.get_text() for text in ax.texts] == ["g1", "g2", "g8"]


def test_three_axes_cannot_be_drawn():
    field = fastconv.receptive_field([{"kernel": (3, 3, 3)}])
    for picture in (plot.text.receptive_field, plot.text.effective_field, plot.text.sampling_points):
        with pytest.raises(ValueError, match="spatial axes to be drawn, got 3"):
            picture(field)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastconv\[plot\]"):
        plot.phases(3)
