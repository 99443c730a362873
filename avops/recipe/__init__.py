"""WHAT to compute: terms, coefficients, names. Pure data: no files, no arrays."""

from avops.recipe.candidates import (
    expand_candidates,
    expand_template,
    is_template,
    parse_candidates,
)
from avops.recipe.coefficient import exact_text, parse_exact, parse_lam, round_f32, round_lam
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
    range_of,
    split_spec,
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
    "exact_text",
    "expand_candidates",
    "expand_template",
    "is_template",
    "parse_candidates",
    "parse_exact",
    "parse_lam",
    "parse_project",
    "parse_recipe_file",
    "parse_skip",
    "parse_sweep",
    "parse_terms",
    "parse_where",
    "range_of",
    "round_f32",
    "round_lam",
    "split_spec",
    "unmatched",
]
