"""TensorFlow's candidates to the bit, and the losses over them."""
