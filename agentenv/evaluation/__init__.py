"""Measuring models: sweeps over tasks, models, settings, seeds and attempts, and what their scores say.

`spec` says what is measured, `sources` how one sample is taken, `runner` takes them all, `store` keeps them, `summary`
and `statistics` say what came of it, `comparison` which of two is better, `report` shows it.
"""
