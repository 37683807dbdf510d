"""solvers - a matrix, its inputs' second moment H and a codec -> rounded values. Pure functions on tensors.

    codec      what one step rounds: a column of a grid, a vector, a tile
    damping    H made safe to invert, its factor, what had to be done for it
    ldl        one pass of rounding with feedback (GPTQ = LDLQ)
    descent    sweeps of coordinate descent over codes, and over scales
    grid       all of it: scales, feedback, descent, report
    target     the weights that make up for the error of the inputs

Loss everywhere: tr(E H ET), E = W - rounded; relative: divided by tr(W H WT).
"""
