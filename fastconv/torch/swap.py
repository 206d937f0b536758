"""Changing the layers of a model to fastconv's, in place, and back."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from . import modules

__all__ = ["Replacement", "replace"]

TWINS: dict[type, type] = {
    getattr(nn, name): getattr(modules, name) for name in modules.__all__ if hasattr(nn, name)
}


class Replacement:
    """The layers that :func:`replace` changed. Leaving a ``with`` block on it changes them back.

    Attributes
    ----------
    layers : dict of str to Module
        The changed layers by their names in the model.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
    >>> with fastconv.torch.replace(model):
    ...     print(type(model[0]).__module__)
    fastconv.torch.modules
    >>> type(model[0]).__module__
    'torch.nn.modules.conv'
    """

    def __init__(self, layers: dict[str, nn.Module], classes: dict[str, type]):
        self.layers = layers
        self._classes = classes

    def undo(self) -> None:
        """Give every layer its own class back. Doing it twice does nothing more."""
        while self._classes:
            name, original = self._classes.popitem()
            self.layers[name].__class__ = original

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return f"<fastconv.torch.Replacement of {len(self)} layers: {', '.join(name or 'the module itself' for name in self)}>"


def replace(module: torch.nn.Module) -> Replacement:
    """Make every convolution in a model run on fastconv, in place.

    A layer stays the object it is and only changes its class. So parameters, buffers, hooks, training state,
    types, parametrizations, and whoever holds a reference to it (an optimizer, a list) are left as they are.

    Parameters
    ----------
    module : Module
        The model, or one layer.

    Returns
    -------
    Replacement
        Has ``undo()``; also a context manager.

    Raises
    ------
    TypeError
        If `module` is none.

    Notes
    -----
    Changed are ``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d`` and their ``ConvTranspose``, ``torchvision.ops.DeformConv2d``,
    and classes derived from these that compute the same, as parametrized layers do. Classes that compute something
    of their own are left alone, as are lazy layers that have not seen an input. What knows only PyTorch's operators,
    such as its export to ONNX, needs them back: ``undo()`` first.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1))
    >>> replacement = fastconv.torch.replace(model)
    >>> replacement
    <fastconv.torch.Replacement of 2 layers: 0, 2>
    >>> replacement.undo()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    layers, classes = {}, {}
    for name, layer in module.named_modules():
        original = type(layer)
        twin = _twin(original)
        if twin is not None:
            layers[name], classes[name] = layer, original
            layer.__class__ = twin
    return Replacement(layers, classes)


def _twin(original: type) -> type | None:
    """Return the class of ours that computes what this one does, if there is one."""
    for base, ours in _twins().items():
        if original is base:
            return ours
        if issubclass(original, ours) or not issubclass(original, base):
            continue
        computing = ("forward", "_conv_forward", "_output_padding", "__call__")
        lazy = issubclass(original, nn.modules.lazy.LazyModuleMixin)
        if lazy or any(getattr(original, name, None) is not getattr(base, name, None) for name in computing):
            return None
        return type(original.__name__, (ours, original), {"__module__": original.__module__})
    return None


def _twins() -> dict[type, type]:
    """Return our class for each of torch's, and of torchvision's if it is in use."""
    vision = sys.modules.get("torchvision.ops")
    return TWINS if vision is None else {**TWINS, vision.DeformConv2d: modules.DeformConv2d}
