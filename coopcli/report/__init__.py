"""Pages to look at: a report on runs and sweeps."""
