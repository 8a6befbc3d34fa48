"""Layers that the heads share."""
