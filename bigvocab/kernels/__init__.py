"""Machine code: arrays in, arrays out; knows no file and no option, never raises."""
