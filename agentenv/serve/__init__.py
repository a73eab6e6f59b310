"""Feeding a trainer through a trajectory server: `serve`."""
