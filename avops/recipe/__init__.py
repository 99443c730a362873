"""WHAT to compute: terms, coefficients, names. Pure data: no files, no arrays."""

from avops.recipe.candidates import (
    expand_candidates,
    expand_template,
    is_template,
    parse_candidates,
)
from avops.recipe.coefficient import parse_lam, round_f32
from avops.recipe.project import Project, parse_project
from avops.recipe.recipe_file import FileRecord, RecipeFile, parse_recipe_file
from avops.recipe.selection import Rule, parse_skip, parse_where
from avops.recipe.terms import (
    Recipe,
    Source,
    Sources,
    Term,
    apply_rules,
    parse_sweep,
    parse_terms,
    unmatched,
)

__all__ = [
    "FileRecord",
    "Project",
    "Recipe",
    "RecipeFile",
    "Rule",
    "Source",
    "Sources",
    "Term",
    "apply_rules",
    "expand_candidates",
    "expand_template",
    "is_template",
    "parse_candidates",
    "parse_lam",
    "parse_project",
    "parse_recipe_file",
    "parse_skip",
    "parse_sweep",
    "parse_terms",
    "parse_where",
    "round_f32",
    "unmatched",
]
