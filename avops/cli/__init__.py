"""TALK: one file per verb; the only place that prints or parses flags."""
