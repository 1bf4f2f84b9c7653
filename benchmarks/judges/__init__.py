"""Judges for benchmarks alone, in a package of their own: an edit beside a judge has everything measured again."""
