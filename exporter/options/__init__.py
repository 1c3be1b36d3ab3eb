"""The options of a run, in groups: one table from which parser, checks and schema follow."""
