"""Tables of published results, made again: a grid of data sets, models and seeds, and figures of others beside ours.

A new table is one data file, ``datasets/<family>/reproduce.toml``, and a task that can fit and evaluate its models.
"""
