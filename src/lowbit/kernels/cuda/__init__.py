"""kernels/cuda - GPU kernels in CUDA C++, compiled by the NVRTC library that comes with torch: no compiler is needed."""
