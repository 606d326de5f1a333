"""Two models row by row: divergence, flips, paired differences."""
