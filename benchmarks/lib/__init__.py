"""What the benchmarks share: the clock, the machine, inputs, cases and reports."""
