"""Exact losses of arrays, and the row sums they share."""
