"""A block of rows becomes losses and exact sums: specification, row losses, tally, coverage, state, evaluator."""
