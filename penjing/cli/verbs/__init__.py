"""One module a verb; each has a function ``command``."""
