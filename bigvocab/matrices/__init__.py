"""Any files or arrays as one read-only matrix (N, V), handed out as tiles."""
