"""kernels/reference - plain torch on every device: what all other kernels must equal."""
