"""What was to be predicted: found, checked, batched."""
