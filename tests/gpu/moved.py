"""Batches of the oracle on another device and in another precision."""

from __future__ import annotations

from dataclasses import replace

from attention.calls import inputs, pattern_for
from torch import Tensor

from seqattn.attention import HeadMix, KeyBias, Layout, Segments, attend, backends
from seqattn.attention.pattern import Pair


def there(value, device, dtype):
    """Return an argument of ``attend`` on the device; gradients still reach the leaves."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Layout):
        return Layout.of(value.lengths, device)
    if isinstance(value, KeyBias):
        return KeyBias(there(value.values, device, dtype))
    if isinstance(value, Segments):
        return replace(value, labels=value.labels.to(device))
    if isinstance(value, Pair):
        first, second = (there(part, device, dtype) for part in (value.first, value.second))
        return replace(value, first=first, second=second)
    if isinstance(value, HeadMix):
        return HeadMix(tuple((count, there(part, device, dtype)) for count, part in value.parts))
    return value


def call(batch, layout, pattern, device, dtype, **arguments):
    """Return the result of ``attend`` for a batch of the oracle on a device."""
    given = inputs(batch, layout) | {"pattern": pattern_for(batch, pattern, layout)}
    return attend(**{name: there(value, device, dtype) for name, value in given.items()}, **arguments)


def cannot(kernel, device, dtype):
    """Return whether a kernel is made for other devices or types; it must then refuse the call."""
    can = backends()[kernel]
    known_device = can.devices is None or device.type in can.devices
    return not known_device or (can.dtypes is not None and dtype not in can.dtypes)
