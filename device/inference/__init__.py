"""Frames in, results out: sources, backends, tasks, and the worker processes that run them."""
