"""Faults that break the product on purpose."""

FAULTS = {}
