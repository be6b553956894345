"""Ahead of time: what a training step needs and how fast it can be, on hardware that is not here.

`slices` knows the hardware, `presumptions` what is planned where the data is not at hand; `program` compiles;
`operations` counts in the program as written, `compiled_text` in the program as compiled; `roofline` makes times of
both, `capacity` finds the largest batch, `figures` holds it all and `tables` says it.
"""
