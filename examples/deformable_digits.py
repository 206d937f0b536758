"""Train a small network on turned, scaled and sheared digits, with deformable convolutions and with plain ones.

    python examples/deformable_digits.py                    # both networks, 5 seeds: curves and sampling_points.png
    python examples/deformable_digits.py --op torchvision   # the same on torch's and torchvision's operators
    python examples/deformable_digits.py --quick            # one seed and few steps

Both networks have equally many parameters: the plain one is wider instead. The rate at which each of them learns is
chosen on validation images, from a seed that is not reported; the test images are looked at once, when a network is
done. The digits, handwritten and 8 x 8 pixels small, come with scikit-learn. It needs pip install 'fastconv[examples]',
and torchvision only for its operator.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

import fastconv.torch

SEEDS = 5
STEPS = 1000
POINTS = 8  # of the curve
WIDTH = 8  # channels of the first layers of the deformable network
SIZE = 16  # pixels of a side of the images the networks see
TRAINING_IMAGES, VALIDATION_IMAGES = 997, 200  # of 1797; the other 600 are for the test
VIEWS = 4  # of each image that is not for training
BATCH = 32
RATES = (0.003, 0.006, 0.012, 0.024)  # to choose from


class TorchvisionPack(fastconv.torch.DeformConv2dPack):
    """The same layer on torchvision's operator and torch's convolution."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        branch = self.conv_offset
        self.conv_offset = nn.Conv2d(
            branch.in_channels, branch.out_channels, branch.kernel_size, branch.stride, branch.padding
        )
        self.conv_offset.load_state_dict(branch.state_dict())

    def forward(self, input):
        """Return the deformable convolution of `input`."""
        from torchvision.ops import deform_conv2d

        offset, mask = self.sampling(input)
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, mask=mask)


def network(width, layer):
    """Return a network of a plain convolution and two layers made by `layer`."""

    def block(make, inputs, outputs, stride):
        return make(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    return nn.Sequential(
        *block(nn.Conv2d, 1, width, 2),
        *block(layer, width, width, 1),
        *block(layer, width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def parameters(model):
    """Return how many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def plain_width(count):
    """Return the least width that gives the plain network `count` parameters or more."""
    return next(width for width in itertools.count(1) if parameters(network(width, nn.Conv2d)) >= count)


def views(images, generator):
    """Return the images as seen after a random turn, scaling and shearing."""

    def uniform(low, high):
        return torch.empty(len(images)).uniform_(low, high, generator=generator)

    angle, scale, shear = uniform(-0.9, 0.9), uniform(0.8, 1.8), uniform(-0.5, 0.5)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
    lean = torch.eye(2).repeat(len(images), 1, 1)
    lean[:, 0, 1] = shear
    matrix = torch.cat([scale[:, None, None] * (turn @ lean), torch.zeros(len(images), 2, 1)], -1)
    grid = affine_grid(matrix, [len(images), 1, SIZE, SIZE], align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def digits():
    """Return the images and labels for training, validation and test; zero is the paper."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8, torch.tensor(data.target)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rest = len(images) - TRAINING_IMAGES - VALIDATION_IMAGES
    parts = shuffled.split([TRAINING_IMAGES, VALIDATION_IMAGES, rest])
    return {
        name: (images[part], labels[part])
        for name, part in zip(("training", "validation", "test"), parts, strict=True)
    }


def seen_once(data):
    """Return views of images that are not trained on, the same at each call, with their labels."""
    images, labels = data
    return views(images.repeat(VIEWS, 1, 1, 1), torch.Generator().manual_seed(1)), labels.repeat(VIEWS)


def train(model, data, steps, seed, rate):
    """Return [(step, share of validation images named right), ...] and the median seconds of a step."""
    images, labels = data["training"]
    validation = seen_once(data["validation"])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    curve, seconds = [], []
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        batch = views(images[chosen], generator)
        start = time.perf_counter()
        loss = cross_entropy(model(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        schedule.step()
        if step % max(steps // POINTS, 1) == 0 or step == steps:
            curve.append((step, accuracy(model, *validation)))
    return curve, statistics.median(seconds)


def accuracy(model, images, labels):
    """Return the share of images that a model names right."""
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


def compare(op, seeds, steps):
    """Train both networks from each seed.

    Returns their curves, the shares of test images named right at the end, a deformable network, and the seconds of
    a step.
    """
    data = digits()
    test = seen_once(data["test"])
    pack = {"fastconv": fastconv.torch.DeformConv2dPack, "torchvision": TorchvisionPack}[op]
    width = plain_width(parameters(network(WIDTH, pack)))
    kinds = {"plain": (width, nn.Conv2d), "deformable": (WIDTH, pack)}
    curves, shares, times = ({name: [] for name in kinds} for _ in range(3))

    def trained(name, seed, rate):
        torch.manual_seed(seed)
        model = network(*kinds[name])
        if op == "fastconv":
            fastconv.torch.replace(model)
        return model, *train(model, data, steps, seed, rate)

    rates = {}
    for name, made in kinds.items():
        found = {rate: trained(name, seeds, rate)[1][-1][1] for rate in RATES}
        rates[name] = max(found, key=found.get)
        tried = ", ".join(f"{rate}: {share:.4f}" for rate, share in found.items())
        count = parameters(network(*made))
        print(f"{name}: width {made[0]}, {count} parameters; validation by rate {tried}", flush=True)
    for seed, name in itertools.product(range(seeds), kinds):
        model, curve, seconds = trained(name, seed, rates[name])
        curves[name].append(curve)
        shares[name].append(accuracy(model, *test))
        times[name].append(seconds)
        print(f"seed {seed}, {name}: {shares[name][-1]:.4f} of the test images right", flush=True)
    return curves, shares, model, {name: statistics.median(seconds) for name, seconds in times.items()}


def spread(curves):
    """Return the steps, and at each the mean and the standard deviation of the share."""
    shares = torch.tensor([[share for _, share in curve] for curve in curves])
    return [step for step, _ in curves[0]], shares.mean(0).numpy(), shares.std(0, correction=0).numpy()


def report(curves, shares, times):
    """Print the curves, how the networks do in the test, which is ahead there, and the times."""
    print("\nshare of validation images named right\n  step" + "".join(f"{name:>18}" for name in curves))
    tables = {name: spread(runs) for name, runs in curves.items()}
    for i, step in enumerate(tables["plain"][0]):
        cells = (f"{mean[i]:.4f} ± {deviation[i]:.4f}" for _, mean, deviation in tables.values())
        print(f"{step:6}" + "".join(f"{cell:>18}" for cell in cells))
    cells = (f"{statistics.mean(found):.4f} ± {statistics.pstdev(found):.4f}" for found in shares.values())
    print("  test" + "".join(f"{cell:>18}" for cell in cells))
    pairs = list(zip(shares["plain"], shares["deformable"], strict=True))
    ahead = sum(deformable > plain for plain, deformable in pairs)
    print(f"\nin the test, deformable convolutions are ahead from {ahead} of {len(pairs)} seeds")
    for name, seconds in times.items():
        print(f"{name}: {1000 * seconds:.2f} ms a step")


def seen_points(layers, images, output):
    """Return for each image (row, column, mask) of every point that pixel `output` of the last layer sees.

    Each of the 9 points of the last deformable layer lies on a pixel for which the layer before saw 9 points.
    """
    samplings, sizes = [], []
    for layer in layers:
        if isinstance(layer, fastconv.torch.DeformConv2dPack):
            offset, mask = layer.sampling(images)
            samplings.append((offset.unflatten(1, (-1, 2)), mask, layer.stride[0]))
            sizes.append(images.shape[-1])
        images = layer(images)
    taps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=2)))
    seen = []
    for image in range(len(images)):
        points = [(torch.tensor(output, dtype=torch.float32), 1.0)]
        for (offset, mask, stride), size in zip(
            reversed(samplings), [*sizes[1:], images.shape[-1]][::-1], strict=True
        ):
            pixels = [(point.round().long().clamp(0, size - 1), share) for point, share in points]
            points = [
                (pixel * stride + tap + offset[image, t, :, *pixel], share * mask[image, t, *pixel].item())
                for pixel, share in pixels
                for t, tap in enumerate(taps)
            ]
        seen.append([(*(SIZE // sizes[0] * point).tolist(), share) for point, share in points])
    return seen


def draw(curves, model, path):
    """Save the curves, and on some images the points that the middle of the last layer sees."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 5, figsize=(16, 3.4), layout="constrained", width_ratios=(1.6, 1, 1, 1, 1)
    )
    for name, runs in curves.items():
        steps, mean, deviation = spread(runs)
        axes[0].plot(steps, mean, label=name)
        axes[0].fill_between(steps, mean - deviation, mean + deviation, alpha=0.2)
    axes[0].set(
        xlabel="step",
        ylabel="share of validation images right",
        title=f"{len(runs)} seeds, mean and deviation",
    )
    axes[0].legend()
    images, labels = digits()["test"]
    chosen = [int((labels == digit).nonzero()[0]) for digit in (0, 3, 4, 7)]
    shown = views(images[chosen], torch.Generator().manual_seed(3))
    layers = model.eval()[:-3]
    with torch.no_grad():
        middle = layers(shown).shape[-1] // 2
        points = seen_points(layers, shown, (middle, middle))
    for axis, image, seen in zip(axes[1:], shown, points, strict=True):
        rows, columns, shares = zip(*seen, strict=True)
        axis.imshow(image[0].numpy(), cmap="gray_r")
        axis.scatter(columns, rows, c=shares, s=14, cmap="autumn_r", edgecolors="black", linewidths=0.3)
        axis.set(xlim=(-3, SIZE + 2), ylim=(SIZE + 2, -3), xticks=[], yticks=[])
    axes[1].set_title("points that one pixel of the last layer sees", loc="left")
    figure.savefig(path, dpi=110)
    print(f"saved {path}")


def main(arguments=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Deformable against plain convolutions on transformed digits."
    )
    parser.add_argument(
        "--op", choices=("fastconv", "torchvision"), default="fastconv", help="whose operators run"
    )
    parser.add_argument("--seeds", type=int, help=f"runs of each network ({SEEDS})")
    parser.add_argument("--steps", type=int, help=f"steps of each run ({STEPS})")
    parser.add_argument("--quick", action="store_true", help="one seed, too few steps to tell a difference")
    parser.add_argument(
        "--figure", type=Path, default=Path("sampling_points.png"), help="where to save the picture"
    )
    given = parser.parse_args(arguments)
    seeds = given.seeds or (1 if given.quick else SEEDS)
    steps = given.steps or (8 if given.quick else STEPS)
    curves, shares, model, times = compare(given.op, seeds, steps)
    report(curves, shares, times)
    draw(curves, model, given.figure)


if __name__ == "__main__":
    main()
