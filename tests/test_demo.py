"""The demo: its lens, its filters, its figures of merit, and the whole of it on a small picture."""

import io

import numpy as np
import pytest
from helpers import normals
from PIL import Image

import fastconv
from fastconv import demo
from fastconv.demo import filters, photo

STRENGTHS = (-0.01, -0.22, -0.33)


@pytest.fixture
def picture_file(tmp_path):
    """A picture of 120 x 96 pixels: smooth waves of colour with a few hard edges."""
    y, x = np.mgrid[0:96, 0:120]
    rgb = [
        0.5 + 0.4 * np.sin(x / 9 + y / 17),
        0.5 + 0.4 * np.cos(x / 13 - y / 8),
        ((x // 20 + y // 16) % 2) * 0.8,
    ]
    path = tmp_path / "waves.png"
    Image.fromarray((np.stack(rgb, -1) * 255).astype(np.uint8)).save(path)
    return path


class TestLens:
    @pytest.mark.parametrize("k1", STRENGTHS)
    def test_undistort_inverts_distort(self, k1):
        lens = demo.Lens(61, 83, k1)
        points = lens.pixels()
        np.testing.assert_allclose(lens.undistort(lens.distort(points)), points, atol=1e-8)

    @pytest.mark.parametrize("k1", STRENGTHS)
    def test_the_closed_form_is_a_root_of_the_formula(self, k1):
        # The radius alone, on a line through the centre, against the roots of the polynomial.
        lens = demo.Lens(201, 201, k1)
        unit = np.hypot(100, 100)
        for distorted in (3.0, 40.0, 60.0):
            (row, column) = lens.undistort(np.array([100.0, 100.0 + distorted]))
            roots = np.roots([k1, 0, 1, -distorted / unit])
            smallest = min(root.real for root in roots if abs(root.imag) < 1e-12 and root.real > 0)
            assert row == pytest.approx(100)
            assert (column - 100) / unit == pytest.approx(smallest, rel=1e-9)

    def test_the_centre_stays_and_corners_move_inwards(self):
        lens = demo.Lens(51, 101, -0.2)
        np.testing.assert_allclose(lens.distort(np.array([25.0, 50.0])), [25, 50])
        np.testing.assert_allclose(lens.distort(np.array([0.0, 0.0])), [0.2 * 25, 0.2 * 50])

    def test_there_is_nothing_beyond_the_largest_imaged_radius(self):
        lens = demo.Lens(51, 51, -0.3)  # images radii up to 2/(3 sqrt(0.9)) = 0.70 only
        assert np.isnan(lens.undistort(np.array([0.0, 0.0]))).all()

    @pytest.mark.parametrize("k1", [0.0, 0.1, -1 / 3, -1.0, float("nan")])
    def test_strengths_that_fold_the_picture_are_refused(self, k1):
        with pytest.raises(ValueError, match="k1 must lie between"):
            demo.Lens(50, 50, k1)

    def test_offsets_lead_every_tap_to_its_place(self):
        lens = demo.Lens(20, 30, -0.15)
        offsets = lens.offsets(3).reshape(3, 3, 2, 20, 30)
        for i, j in ((0, 0), (1, 1), (2, 0)):
            regular = lens.pixels() + np.array([i - 1, j - 1]).reshape(2, 1, 1)
            np.testing.assert_allclose(regular + offsets[i, j], lens.distort(regular), atol=1e-5)

    def test_any_kernel_is_applied_as_if_there_were_no_lens(self, backend):
        # Waves long enough for linear interpolation, distorted by the formula instead of by resampling.
        lens = demo.Lens(90, 110, -0.2)

        def waves(points):
            return np.sin(points[0] / 15)[None] * np.cos(points[1] / 19)[None]

        distorted = np.nan_to_num(waves(lens.undistort(lens.pixels()))).astype(np.float32)
        weight = normals(np.random.default_rng(0), (1, 1, 3, 3), np.float32)
        actual = fastconv.deform_conv2d(distorted[None], lens.offsets(3), weight, padding=1, backend=backend)[
            0
        ]
        expected = fastconv.conv2d(waves(lens.pixels()), weight, padding=1, backend="numpy")
        inner = (slice(None), slice(2, -2), slice(2, -2))
        np.testing.assert_allclose(actual[inner], expected[inner], atol=0.01)


class TestFilters:
    def test_blur_keeps_brightness(self):
        assert filters.gaussian(9, 2.0).sum() == pytest.approx(1, abs=1e-6)

    def test_sobel_is_the_slope(self, backend):
        y, x = np.mgrid[0:9, 0:11].astype(np.float32)
        slopes = fastconv.conv2d((2 * x + 5 * y)[None], filters.SOBEL[:, None], backend=backend)
        np.testing.assert_allclose(slopes[0], 2, atol=1e-5)
        np.testing.assert_allclose(slopes[1], 5, atol=1e-5)

    @pytest.mark.parametrize("factor", [2, 4])
    def test_bilinear_enlargement_continues_a_ramp(self, backend, factor):
        y, x = np.mgrid[0:8, 0:9].astype(np.float32)
        ramp = (3 * x + y)[None]
        weight = filters.bilinear(factor)[None, None]
        large = fastconv.conv_transpose2d(ramp, weight, stride=factor, padding=factor // 2, backend=backend)
        rows, columns = (((np.arange(factor * n) + 0.5) / factor - 0.5) for n in (8, 9))
        inner = (slice(factor, -factor), slice(factor, -factor))
        np.testing.assert_allclose(large[0][inner], (3 * columns + rows[:, None])[inner], atol=1e-5)

    def test_standard_and_depthwise_weights_say_the_same(self, backend):
        image = normals(np.random.default_rng(1), (1, 3, 12, 15), np.float32)
        kernel = filters.gaussian(5, 1.0)
        standard = fastconv.conv2d(image, filters.same_on_each(kernel), backend=backend)
        depthwise = fastconv.conv2d(image, filters.per_channel(kernel), groups=3, backend=backend)
        np.testing.assert_allclose(standard, depthwise, atol=1e-6)


class TestPhoto:
    def test_the_sample(self):
        sample = demo.load_photo()
        assert sample.dtype == np.float32
        assert sample.shape[0] == 3
        assert max(sample.shape) == photo.LONGEST_SIDE
        assert 0 <= sample.min() < 0.1
        assert 0.9 < sample.max() <= 1

    @pytest.mark.parametrize(
        ("mode", "suffix"), [("L", "png"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png"), ("RGB", "jpg")]
    )
    def test_every_kind_of_file(self, tmp_path, mode, suffix):
        ramp = np.tile(np.linspace(0, 255, 200), (100, 1))
        image = (
            Image.fromarray((ramp * 257).astype(np.uint16))
            if mode == "I;16"
            else Image.fromarray(ramp.astype(np.uint8)).convert(mode)
        )
        path = tmp_path / f"ramp.{suffix}"
        image.save(path)
        loaded = demo.load_photo(path)
        assert loaded.shape == (3, 100, 200)
        np.testing.assert_allclose(loaded[1], ramp / 255, atol=0.02)

    def test_it_stands_as_the_camera_was_held(self, tmp_path):
        image, exif = Image.new("RGB", (200, 100)), Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(tmp_path / "turned.jpg", exif=exif)
        assert demo.load_photo(tmp_path / "turned.jpg").shape == (3, 200, 100)

    def test_large_ones_are_scaled_down(self, tmp_path):
        Image.new("RGB", (2000, 1000)).save(tmp_path / "large.png")
        assert demo.load_photo(tmp_path / "large.png").shape == (3, 256, 512)

    def test_errors_name_the_file(self, tmp_path):
        text = tmp_path / "text.png"
        text.write_text("no picture")
        broken = tmp_path / "broken.png"
        with io.BytesIO() as data:
            Image.effect_noise((200, 200), 50).save(data, "png")
            broken.write_bytes(data.getvalue()[:5000])
        narrow = tmp_path / "narrow.png"
        Image.new("RGB", (1000, 10)).save(narrow)
        for path, match in (
            (tmp_path / "none.png", "there is no file"),
            (tmp_path, "cannot read"),
            (text, "cannot read"),
            (broken, "cannot read"),
            (narrow, "at least 64"),
        ):
            with pytest.raises(demo.PhotoError, match=match) as caught:
                demo.load_photo(path)
            assert str(path) in str(caught.value)


class TestUndistortion:
    def test_the_error_falls_on_the_sample(self, backend):
        undistortion = demo.Undistortion.of(demo.load_photo())
        corrected = undistortion.judge(undistortion.step().run(backend))
        assert corrected.improvement > 5
        assert corrected.after < 0.03
        assert 0.5 < undistortion.compared.mean() < 1

    def test_offsets_of_the_wrong_sign_are_found_out(self):
        undistortion = demo.Undistortion.of(demo.load_photo())
        step = undistortion.step()
        step.arrays["offset"] = -step.arrays["offset"]
        assert not undistortion.judge(step.run("numpy")).succeeded


def test_measurements_agree_with_the_oracle(picture_file, backend):
    image = demo.load_photo(picture_file)
    measured = demo.measure_all(demo.make_steps(image, demo.Undistortion.of(image)), [backend], _Silent())
    assert {m.step.variant for m in measured} == {
        "standard",
        "depthwise",
        "dilated",
        "transposed",
        "deformable",
    }
    for m in measured:
        assert m.agrees, f"{m.step}: {m.error}"
        assert m.backend == backend
        assert m.seconds > 0
        assert m.kernel in {kernel.name for kernel in fastconv.kernels(m.step.op, backend=backend)}


def test_the_whole_demo_writes_a_figure(picture_file, tmp_path, capsys):
    output = tmp_path / "figure.png"
    assert demo.run(picture_file, output)
    printed = capsys.readouterr().out
    for text in (
        "standard",
        "depthwise",
        "dilated",
        "transposed",
        "deformable",
        "RMSE",
        "all do",
        "120 x 96",
        str(output.name),
    ):
        assert text in printed
    with Image.open(output) as figure:
        assert figure.format == "PNG"
        assert figure.width > figure.height > 500
        assert len(np.unique(np.asarray(figure.convert("L")))) > 100


def test_a_wrong_backend_is_shown_up(picture_file, tmp_path, capsys):
    class Wrong:
        name = "wrong"
        kernels = tuple(
            fastconv.Kernel(k.name, "wrong", k.ops, k.refuse, k.cost, _off_by_a_little(k))
            for k in fastconv.kernels(backend="numpy")
        )

    image = demo.load_photo(picture_file)
    count = len(demo.make_steps(image, demo.Undistortion.of(image)))
    fastconv.register_backend(Wrong())
    try:
        assert not demo.run(picture_file, tmp_path / "figure.png", ["numpy", "wrong"])
    finally:
        fastconv.unregister_backend("wrong")
    assert f"{count} of them do not" in capsys.readouterr().out


def _off_by_a_little(kernel):
    def build(problem):
        run = kernel.build(problem)

        def wrong(output, *operands):
            run(output, *operands)
            output *= 1 + 1e-4

        return wrong

    return build


class _Silent:
    """Progress that nobody sees."""

    def start(self, total):
        self.steps = total

    def advance(self, doing):
        self.steps -= 1

    def finish(self):
        assert self.steps == 0


def test_the_enlargement_has_twice_the_size_up_to_its_border(picture_file, backend):
    image = demo.load_photo(picture_file)
    large = demo.make_steps(image, demo.Undistortion.of(image))["enlarge"].run(backend)
    assert large.shape == (3, 2 * 96, 2 * 120)
    np.testing.assert_allclose(large[:, 0, 0], image[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(large[:, -1, -1], image[:, -1, -1], atol=1e-6)
