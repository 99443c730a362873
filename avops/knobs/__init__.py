"""DO, in place: the pristine base and its alignment vectors behind a live model."""

from avops.knobs.counts import Counts
from avops.knobs.knobs import Knobs, load
from avops.knobs.mapped import Mapped
from avops.knobs.residency import Choice
from avops.knobs.settings import Options, Settings

__all__ = ["Choice", "Counts", "Knobs", "Mapped", "Options", "Settings", "load"]
