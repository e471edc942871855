"""The rows of benchmarks/gpu.py: is it right, how fast."""
