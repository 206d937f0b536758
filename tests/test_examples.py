"""The scripts of examples/ run in their small form, and do what they are there to show."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the examples are not beside the tests")


def script(name, *needs):
    """Import a script, or skip the test where what it needs is not installed."""
    for module in needs:
        pytest.importorskip(module, reason=f"the example needs {module}")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestInverse:
    def test_quick(self, tmp_path, capsys):
        example = script("inverse", "matplotlib", "PIL")
        figure = tmp_path / "inverse.png"
        example.main(["--size", "64", "--figure", str(figure)])
        printed = capsys.readouterr().out
        errors = dict(re.findall(r"(?m)^([\w ]+?) +mean error (\S+)", printed))
        assert float(errors["found from it"]) < 0.8 * float(errors["blurred"])
        assert float(errors["found from features"]) < 0.01
        assert figure.stat().st_size > 10_000

    def test_both_operators_have_the_adjoint_they_say(self):
        example, rng = script("inverse"), np.random.default_rng(0)
        for A in (example.blur((3, 20, 16)), example.features((3, 20, 16))):
            x, y = (rng.standard_normal(size) for size in A.shape[::-1])
            assert np.isclose(A.matvec(x) @ y, x @ A.rmatvec(y), rtol=1e-12)


class TestDeformableDigits:
    NEEDS = ("torch", "sklearn", "matplotlib")

    @pytest.mark.parametrize("op", ["fastconv", "torchvision"])
    def test_quick(self, op, tmp_path, capsys):
        needs = (*self.NEEDS, "torchvision") if op == "torchvision" else self.NEEDS
        example = script("deformable_digits", *needs)
        figure = tmp_path / "points.png"
        # Each step is followed by a look at all test images, which takes longest.
        example.main(["--quick", "--steps", "2", "--op", op, "--figure", str(figure)])
        printed = capsys.readouterr().out
        assert "of the test images right" in printed
        assert "of 1 seeds" in printed
        assert printed.count("ms a step") == 2
        assert figure.stat().st_size > 10_000

    def test_both_networks_learn_equally_many_numbers(self):
        example = script("deformable_digits", *self.NEEDS)
        deformable = example.network(example.WIDTH, example.fastconv.torch.DeformConv2dPack)
        count = example.parameters(deformable)
        plain = example.network(example.plain_width(count), example.nn.Conv2d)
        assert count <= example.parameters(plain) < 1.2 * count

    def test_without_offsets_the_points_are_those_of_plain_convolutions(self):
        example = script("deformable_digits", *self.NEEDS)
        model = example.network(4, example.fastconv.torch.DeformConv2dPack).eval()
        images = example.torch.zeros(1, 1, example.SIZE, example.SIZE)
        with example.torch.no_grad():
            (seen,) = example.seen_points(model[:-3], images, (2, 2))
        places = {(row, column) for row, column, _ in seen}
        assert len(seen) == 81
        # 5 x 5 pixels of the first feature map around (4, 4), which lie two pixels of the image apart.
        assert places == {
            (float(row), float(column)) for row in range(4, 13, 2) for column in range(4, 13, 2)
        }
        assert {share for *_, share in seen} == {0.25}
