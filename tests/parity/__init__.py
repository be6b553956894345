"""Same weights, same input, same answer: what reference programs computed, against this library."""
