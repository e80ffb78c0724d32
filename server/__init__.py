"""Staging, rollouts, catalog and blobs, HTTP for devices and for people."""
