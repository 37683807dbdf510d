"""kernels/triton - GPU kernels in Triton. Files that import triton start with an underscore and are imported on first use."""
