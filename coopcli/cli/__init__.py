"""The command line: options in, one call into the core, rendering out."""
