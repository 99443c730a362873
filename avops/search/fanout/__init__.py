"""Who measures: workers in this process, in others, or on a Ray cluster, behind one crew."""
