"""Where arithmetic meets the machine: devices and memory order, compiled kernels, reused buffers."""
