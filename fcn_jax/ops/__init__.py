"""Arithmetic on pixel grids that Flax lacks; functions of arrays, without parameters."""
