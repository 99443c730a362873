"""One site for each device of a model: chosen, then loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from avops.errors import UserError
from avops.knobs import lanes
from avops.knobs.device import DeviceSite
from avops.knobs.host import HostSite
from avops.knobs.residency import host_memory
from avops.knobs.settings import Progress
from avops.knobs.site import Inputs, Site
from avops.knobs.targets import Target

if TYPE_CHECKING:
    import torch


def make_sites(targets: Sequence[Target], inputs: Inputs, wanted: str) -> tuple[Site, ...]:
    """The sites of ``targets``, the host's last: it computes while the others are at work.

    wanted: the residency on devices, or ``auto``. Raises UserError where it cannot be had.
    """
    numbers: dict[torch.device, list[int]] = {}
    for number, target in enumerate(targets):
        numbers.setdefault(target.tensor.device, []).append(number)
    found: list[Site] = []
    last: list[Site] = []
    host = host_memory()
    for device, mine in numbers.items():
        picked = [targets[number] for number in mine]
        lane = lanes.lane_of(device)
        if lane is None:
            last.append(HostSite(device, mine, picked, inputs))
            continue
        site = DeviceSite(lane, mine, picked, inputs, wanted=wanted, host=host)
        host -= site.pinned_bytes
        found.append(site)
    if not found and wanted in ("device", "pinned"):
        where = " and ".join(map(str, numbers)) or "no device"
        raise UserError(
            f"residency={wanted!r}: the model is on {where}, where weights are combined by the "
            "CPU from the page cache; use residency='auto' or 'disk'"
        )
    return (*found, *last)


def load_all(sites: Sequence[Site], progress: Progress | None) -> None:
    """Bring everything to where it stays; ``progress`` gets the bytes of all sites together."""
    import torch

    total, done = sum(site.total for site in sites), [0] * len(sites)
    for number, site in enumerate(sites):

        def told(here: int, number: int = number) -> None:
            done[number] = here
            if progress is not None:
                progress(sum(done), total)

        # Memory made in inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False):
            site.load(told)
