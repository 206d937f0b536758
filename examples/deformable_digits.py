"""Train a small network on turned, scaled and sheared digits, with deformable convolutions and without.

    python examples/deformable_digits.py                       # 5 seeds: the curves, and sampling_points.png
    python examples/deformable_digits.py --op torchvision      # the same on torch's and torchvision's operators
    python examples/deformable_digits.py --quick               # one seed, few steps

Both networks have as many parameters; the plain one is wider instead. The handwritten digits, 8 x 8 pixels, come with
scikit-learn. Needs: pip install 'fastconv[examples]', and torchvision for its operator.
"""

import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

import fastconv.torch

SIZE = 16  # pixels of a side of the images the networks see
TRAINING_IMAGES = 1197  # of 1797
TEST_VIEWS = 4  # of each test image
BATCH = 32
RATE = 0.004
OFFSET_RATE = 0.1  # of RATE, as in the papers


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
    """Return a network of two plain convolutions and two made by `layer`."""

    def block(make, inputs, outputs, stride):
        return make(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    return nn.Sequential(
        *block(nn.Conv2d, 1, width, 1),
        *block(nn.Conv2d, width, width, 2),
        *block(layer, width, 2 * width, 2),
        *block(layer, 2 * width, 2 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def parameters(model):
    """Return how many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def plain_width(count):
    """Return the least width that gives the plain network `count` parameters."""
    width = 1
    while parameters(network(width, nn.Conv2d)) < count:
        width += 1
    return width


def views(images, generator):
    """Return the images as seen after a random turn, scaling and shearing."""

    def uniform(low, high):
        return torch.empty(len(images)).uniform_(low, high, generator=generator)

    angle, scale, shear = uniform(-0.9, 0.9), uniform(0.8, 1.8), uniform(-0.5, 0.5)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
    lean = torch.eye(2).repeat(len(images), 1, 1)
    lean[:, 0, 1] = shear
    matrix = torch.cat([scale[:, None, None] * (turn @ lean), torch.zeros(len(images), 2, 1)], -1)
    return grid_sample(
        images, affine_grid(matrix, [len(images), 1, SIZE, SIZE], align_corners=False), align_corners=False
    )


def digits():
    """Return training images and labels, and those for the test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    # Zero is the paper, which grid_sample adds around the image.
    images, labels = images + 1, torch.tensor(data.target)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = shuffled[:TRAINING_IMAGES], shuffled[TRAINING_IMAGES:]
    return images[train], labels[train], images[test], labels[test]


def train(model, data, steps, seed, every):
    """Return [(step, test accuracy), ...] and the median seconds of a step."""
    images, labels, test_images, test_labels = data
    test_images = test_images.repeat(TEST_VIEWS, 1, 1, 1)
    test = views(test_images, torch.Generator().manual_seed(1)), test_labels.repeat(TEST_VIEWS)
    generator = torch.Generator().manual_seed(seed)
    branch = [p for name, p in model.named_parameters() if "conv_offset" in name]
    rest = [p for name, p in model.named_parameters() if "conv_offset" not in name]
    groups = [{"params": rest}, {"params": branch, "lr": RATE * OFFSET_RATE}] if branch else rest
    optimizer = torch.optim.Adam(groups, lr=RATE)
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
        if step % every == 0 or step == steps:
            curve.append((step, accuracy(model, *test)))
    return curve, statistics.median(seconds)


def accuracy(model, images, labels):
    """Return the share of images that a model names right."""
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    data = digits()
    width = int(sys.argv[1])
    steps = int(sys.argv[2])
    seeds = int(sys.argv[3])
    d = network(width, TorchvisionPack)
    pw = plain_width(parameters(d))
    print(parameters(d), pw, parameters(network(pw, nn.Conv2d)))
    for s in range(seeds):
        for name, w, l in (("plain", pw, nn.Conv2d), ("deform", width, TorchvisionPack)):
            torch.manual_seed(s)
            m = network(w, l)
            c, t = train(m, data, steps, s, max(steps // 5, 1))
            print(s, name, [f"{a:.3f}" for _, a in c], f"{t * 1e3:.1f} ms", flush=True)
