"""Device meshes by name: `make_mesh({"data": 2, "tensor": 4})`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxmodel.errors import InputError
from jaxmodel.sharding.rules import AXES


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with every axis of the design, those not named being of size one.

    Args:
      sizes: devices along each named axis; one of them may be -1, for all that remain. All devices
        go to `data` when nothing is said.
      devices: which devices; all of them by default.

    Raises:
      InputError: an axis that is not one of ours, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": -1} if sizes is None else dict(sizes)
    for name, size in sizes.items():
        if name not in AXES:
            raise InputError(f"mesh.{name}: the mesh axes are {', '.join(AXES)}")
        if size < 1 and size != -1:
            raise InputError(f"mesh.{name}={size}: give a number of devices, or -1 for all that remain")
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    said = {name: size for name, size in sizes.items() if size != 1} or sizes
    asked = " * ".join(f"mesh.{name}={size}" for name, size in said.items())
    if len(free) > 1:
        raise InputError(f"{asked}: only one mesh axis can be -1")
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise InputError(
            f"{asked} does not fit {len(devices)} device{'s' if len(devices) > 1 else ''}: "
            f"make the product {len(devices)}" + ("" if free else ", or set one axis to -1")
        )
    for name in free:
        sizes[name] = len(devices) // fixed
    shape = tuple(sizes.get(name, 1) for name in AXES)
    # Auto axes: the default (Explicit) makes sharding part of every type, which Linen layers do not expect.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
