"""DO, to disk: plan which bytes, then read → combine → write."""

from avops.stream.decide import MergePlan
from avops.stream.extract import ExtractPlan, ExtractReport, extract, plan_extract
from avops.stream.inspect import (
    Group,
    Size,
    Touched,
    VectorReport,
    group_of,
    inspect_adapter,
    inspect_checkpoint,
    inspect_vectors,
)
from avops.stream.merge import (
    MergeReport,
    Written,
    default_target,
    merge,
    plan_merge,
    plan_merges,
)
from avops.stream.options import MergeOptions

__all__ = [
    "ExtractPlan",
    "ExtractReport",
    "Group",
    "MergeOptions",
    "MergePlan",
    "MergeReport",
    "Size",
    "Touched",
    "VectorReport",
    "Written",
    "default_target",
    "extract",
    "group_of",
    "inspect_adapter",
    "inspect_checkpoint",
    "inspect_vectors",
    "merge",
    "plan_extract",
    "plan_merge",
    "plan_merges",
]
