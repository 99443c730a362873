"""Models over several devices: what transformers' ``device_map`` may be here, and what came of it.

accelerate's hooks move a layer's inputs to the layer's device. Parameters that it would keep
elsewhere and bring for each forward (offloaded to the CPU or to disk) are refused: λ is set in
place, and they have no place.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from avops.errors import MismatchError, MissingExtraError, UserError

if TYPE_CHECKING:
    import torch

DeviceMap: TypeAlias = "str | Mapping[str, int | str]"
"""One of NAMES, or the device of every module: a CUDA device's number, or a device's name."""

NAMES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which transformers cuts a model itself."""

SHOWN = 5
"""Names shown in an error; the rest is counted."""


def check_device_map(device_map: DeviceMap) -> str | dict[str, int | str]:
    """``device_map`` as transformers takes it, refused before anything is loaded.

    Raises UserError for an unknown name, a device that is not there and a map that would offload,
    MissingExtraError without accelerate.
    """
    if isinstance(device_map, str):
        if device_map not in NAMES:
            raise UserError(
                f"device_map {device_map!r}: expected one of {', '.join(NAMES)}, or the device of "
                "every module; a single device goes to 'device'"
            )
    else:
        _check_devices(device_map)
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", "align", "a device_map")
    return device_map if isinstance(device_map, str) else dict(device_map)


def check_placed(model: Any, device_map: DeviceMap, source: str) -> None:
    """Refuse a model of which a part has no memory, or another device than the map says.

    Raises UserError for offloaded modules, MismatchError for a map that does not fit the model.
    """
    if not isinstance(device_map, str):
        _check_names(model, device_map, source)
    placed: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    kinds = {name: _kind(device) for name, device in placed.items()}
    gpus = "gpu" in kinds.values()
    away = [name for name, kind in kinds.items() if kind == "disk" or (gpus and kind == "cpu")]
    away = away or [name for name, tensor in _tensors(model) if tensor.device.type == "meta"]
    if away:
        raise UserError(
            f"{source}: device_map {device_map!r} leaves {len(away)} parts to the CPU or to disk "
            f"({_some(away)}), expected all of them on GPUs: λ is set in place, and offloaded "
            "weights have no place; use more or larger GPUs, or the dtype bf16"
        )


def devices_of(model: Any) -> tuple[str, ...]:
    """The devices of a model's tensors, in the order in which they come."""
    return tuple(dict.fromkeys(str(tensor.device) for _, tensor in _tensors(model)))


def _check_devices(device_map: Mapping[str, int | str]) -> None:
    import torch

    if not device_map:
        raise UserError("device_map: it is empty, expected the device of every module")
    count = torch.cuda.device_count()
    for name, device in device_map.items():
        try:
            if isinstance(device, bool) or not isinstance(device, (int, str)):
                raise TypeError
            found = torch.device("cuda", device) if isinstance(device, int) else _device(device)
        except (RuntimeError, TypeError):
            raise UserError(
                f"device_map: module {name!r} is to be on {device!r}, expected the number of a "
                "CUDA device, or a name such as cuda:0 or cpu"
            ) from None
        if found is not None and found.type == "cuda" and (found.index or 0) >= count:
            raise UserError(
                f"device_map: module {name!r} is to be on {device!r}, but torch sees {count} CUDA "
                "devices; name devices that are there"
            )
    kinds = {name: _kind(device) for name, device in device_map.items()}
    gpus = "gpu" in kinds.values()
    for name, kind in kinds.items():
        if kind in ("disk", "meta") or (gpus and kind == "cpu"):
            raise UserError(
                f"device_map: module {name!r} is to be on {device_map[name]!r}, and accelerate "
                "would bring its weights for each forward, expected a GPU: λ is set in place, and "
                "offloaded weights have no place; leave it to a GPU"
            )


def _device(name: str) -> torch.device | None:
    """The device called ``name``; None for accelerate's own word."""
    import torch

    return None if name == "disk" else torch.device(name)


def _kind(device: object) -> str:
    """``cpu``, ``disk``, ``meta``, or ``gpu``, whatever its number."""
    kind = str(device).partition(":")[0]
    return kind if kind in ("cpu", "disk", "meta") else "gpu"


def _check_names(model: Any, device_map: Mapping[str, int | str], source: str) -> None:
    tensors = [name for name, _ in _tensors(model)]
    unknown = [name for name in device_map if not any(_inside(own, name) for own in tensors)]
    if unknown:
        raise MismatchError(
            f"{source}: device_map names {len(unknown)} modules that hold nothing in this model: "
            f"{_some(unknown)}; expected names such as {tensors[0].rpartition('.')[0]}"
        )
    left = [own for own in tensors if not any(_inside(own, name) for name in device_map)]
    if left:
        raise MismatchError(
            f"{source}: device_map gives no device to {len(left)} tensors of this model: "
            f"{_some(left)}; name their modules, or '' for all others"
        )
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for one, other in ties.items():
        first, second = (device_map[_home(name, device_map)] for name in (one, other))
        if first != second:
            raise MismatchError(
                f"{source}: device_map puts {one} on {first} and {other} on {second}, which are "
                "one tensor in this model; give both one device"
            )


def _home(tensor: str, device_map: Mapping[str, int | str]) -> str:
    """The innermost module of the map that holds ``tensor``."""
    return max((name for name in device_map if _inside(tensor, name)), key=len)


def _inside(tensor: str, module: str) -> bool:
    return not module or tensor == module or tensor.startswith(f"{module}.")


def _tensors(model: Any) -> Iterable[tuple[str, torch.Tensor]]:
    both: Iterable[tuple[str, torch.Tensor]] = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return both


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
