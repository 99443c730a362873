"""DO, in place: the pristine base and its alignment vectors behind a live model."""

from avops.knobs.knobs import Knobs
from avops.knobs.mapped import Mapped

__all__ = ["Knobs", "Mapped"]
