"""What benchmarks/against_reference.py is made of: shims, a CLIP in two formats, drawn pictures, and the rows of its table."""
