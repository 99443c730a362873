"""mergekit's YAML configs as recipes, and recipes as mergekit's YAML. Text in, text out."""

from avops.recipe.mergekit.config import MergekitConfig, parse_mergekit
from avops.recipe.mergekit.models import ModelRef
from avops.recipe.mergekit.write import to_mergekit

__all__ = ["MergekitConfig", "ModelRef", "parse_mergekit", "to_mergekit"]
