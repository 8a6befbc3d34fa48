"""The fit loop, its observers, and files of fitted models."""
