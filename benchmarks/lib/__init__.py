"""Parts of the benchmarks: timing, memory, the machine, inputs, cases and reports."""
