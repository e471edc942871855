"""Drawn pictures with labels: the tasks of `coop demo`."""
