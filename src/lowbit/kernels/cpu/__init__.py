"""kernels/cpu - the fastest that torch brings for the CPU."""
