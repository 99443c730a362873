"""WHAT to compute: terms, coefficients, names. Pure data: no files, no arrays."""

from avops.recipe.coefficient import parse_lam, round_f32
from avops.recipe.project import Project, parse_project
from avops.recipe.terms import Recipe, Source, Sources, Term, parse_sweep, parse_terms

__all__ = [
    "Project",
    "Recipe",
    "Source",
    "Sources",
    "Term",
    "parse_lam",
    "parse_project",
    "parse_sweep",
    "parse_terms",
    "round_f32",
]
