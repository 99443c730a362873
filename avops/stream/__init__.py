"""DO, to disk: plan which bytes, then read → combine → write."""

from avops.stream.extract import ExtractPlan, ExtractReport, extract, plan_extract
from avops.stream.inspect import (
    Group,
    Size,
    VectorReport,
    group_of,
    inspect_checkpoint,
    inspect_vectors,
)
from avops.stream.merge import (
    MergeOptions,
    MergePlan,
    MergeReport,
    default_target,
    merge,
    plan_merge,
)

__all__ = [
    "ExtractPlan",
    "ExtractReport",
    "Group",
    "MergeOptions",
    "MergePlan",
    "MergeReport",
    "Size",
    "VectorReport",
    "default_target",
    "extract",
    "group_of",
    "inspect_checkpoint",
    "inspect_vectors",
    "merge",
    "plan_extract",
    "plan_merge",
]
