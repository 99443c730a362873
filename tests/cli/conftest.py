"""What tests of commands share."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from small_project import SmallProject


@pytest.fixture
def talkative(project: SmallProject) -> SmallProject:
    """The project with a base whose greedy answers never end: some logit is always above 0."""
    weights = load_file("base.safetensors")
    weights["lm_head.weight"][[1, 2]] = 0  # </s>, and what Mistral's config calls so
    save_file(weights, "base.safetensors", {"format": "pt"})
    return project
