"""Numba kernels: the only place that imports numba. A kernel takes checked arrays, holds no lock, never raises."""
