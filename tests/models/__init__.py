"""A package, so that two folders may hold tests of one name."""
