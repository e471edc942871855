"""Runs and grids of runs: what is measured, the folders it is kept in, tables and figures."""
